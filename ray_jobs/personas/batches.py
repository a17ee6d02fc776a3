"""Leased users with all that is known of them: their plan, the clusters they like now, and what they are served."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.personas.freshness import Event, FreshnessConfig, ServedPersona, clusters_digest
from models.personas.interests import InterestConfig
from ray_jobs.personas.planning import Plan, read_newest
from ray_jobs.personas.queue import Lease
from ray_jobs.personas.store import PersonaStore
from ray_jobs.personas.writing import Config, plan_personas
from ray_jobs.tables.personas import PERSONA_DEAD_LETTERS, REFRESHED_PERSONAS
from ray_jobs.warehouse import Warehouse


@dataclass(frozen=True)
class LeasedUsers:
    """See the module.

    Attributes:
        warehouse: Where the tables are.
        version: The persona version in force.
        plan: What the model would be asked for each user with enough history.
        clusters: Digest of the clusters of each user's newest events.
        standing: What users are served now.
    """

    warehouse: Warehouse
    version: str
    plan: Plan
    clusters: dict[str, str]
    standing: dict[str, ServedPersona]

    @classmethod
    def of(
        cls, leases: Sequence[Lease], writing: Config, freshness: FreshnessConfig, store: PersonaStore
    ) -> "LeasedUsers":
        """Reads the tables and the store, once for all users."""
        users = [lease.user_id for lease in leases]
        history = read_newest(writing.warehouse, users, freshness.window)
        digests = history_digests(history, writing.interests, freshness.window)
        plan = plan_personas(writing, users)
        return cls(writing.warehouse, writing.persona_version, plan, digests, store.read(users))

    @property
    def planned(self) -> set[str]:
        """Users with enough history."""
        return set(self.plan.users["user_id"])

    def is_unchanged(self, user_id: str) -> bool:
        """Whether what a user is served was written for these clusters, by the version in force."""
        standing = self.standing.get(user_id)
        return standing is not None and (standing.clusters, standing.persona_version) == (
            self.clusters[user_id],
            self.version,
        )

    def confirmed(self, user_id: str) -> ServedPersona:
        """What a user is served, as good as new."""
        return replace(self.standing[user_id], written=dt.datetime.now(dt.UTC))

    def served(self, row: dict[str, Any]) -> ServedPersona:
        """A row of `assemble` as requests read it."""
        kept = {k: row[k] for k in ("user_id", "content_key", "persona", "interests", "explorations")}
        return ServedPersona(
            **kept,
            clusters=self.clusters[row["user_id"]],
            persona_version=self.version,
            written=dt.datetime.now(dt.UTC),
        )

    def table(self, rows: Sequence[tuple[Lease, dict[str, Any]]]) -> pa.Table:
        """Rows of `assemble` as rows of `REFRESHED_PERSONAS`."""
        now = dt.datetime.now(dt.UTC)
        made = [
            {c.name: row.get(c.name) for c in REFRESHED_PERSONAS.columns}
            | {
                "clusters": self.clusters[row["user_id"]],
                "lease": f"{lease.id}:{lease.fence}",
                "created_timestamp": now,
            }
            for lease, row in rows
        ]
        return pa.Table.from_pylist(made, REFRESHED_PERSONAS.schema)

    def reason(self, user_id: str) -> str:
        """Why there is no text for a user, as the dead letters say."""
        key = self.plan.users.filter(pl.col("user_id") == user_id)["content_key"].item()
        found = self.warehouse.read(
            PERSONA_DEAD_LETTERS, ["reason", "created_timestamp"], pc.field("content_key") == key
        )
        reasons = found.sort_by([("created_timestamp", "descending")])["reason"].to_pylist()
        return reasons[0] if reasons else "no_text"


def history_digests(history: pl.DataFrame, config: InterestConfig, window: int) -> dict[str, str]:
    """Digest of the clusters of each user's newest events, as the read path makes it of the online store.

    Args:
        history: As `read_newest` returns it.
        config: Knobs of the interests.
        window: Events that count.
    """
    newest = history.sort(["user_id", "position"], descending=[False, True])
    newest = newest.group_by("user_id", maintain_order=True).head(window)
    grouped = newest.group_by("user_id", maintain_order=True).agg("item_id", "liked", "cluster")
    return {
        user: clusters_digest(list(map(Event, items, liked, clusters)), config, window)
        for user, items, liked, clusters in grouped.iter_rows()
    }
