"""Personas in the online store: one view that refreshes write and requests read.

It is beside `user_persona`, which is published from a table: that view's online rows must equal its offline ones, and
a refresh between two publications would break that.
"""

import datetime as dt
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from feast import FeatureStore, RepoConfig
from feast.errors import FeatureViewNotFoundException

from feature_repo import online
from feature_repo.entities import item, user
from feature_repo.latest import REMOVED
from feature_repo.sources import CREATED_TIMESTAMP, EVENT_TIMESTAMP, user_persona_text_pushed
from feature_repo.views import user_persona_text
from models.personas.freshness import Event, ServedPersona

logger = logging.getLogger("belvedere.personas")
VIEW = user_persona_text.name
FEATURES = [f.name for f in user_persona_text.features]
PERSONA = [f"{VIEW}:{f}" for f in FEATURES]
ACTIVITY = ["user_activity:recent_item_ids", "user_activity:recent_labels"]
CLUSTER = "item_semantic_ids:cluster"
MOMENT = pa.timestamp("us", "UTC")


def connect(**config: Any) -> "OnlinePersonas":
    """Opens the store.

    Args:
        **config: Arguments of Feast's ``RepoConfig``.
    """
    return OnlinePersonas(FeatureStore(config=RepoConfig(**config)))


class OnlinePersonas:
    """See `ray_jobs.personas.store.PersonaStore`.

    Args:
        store: The Feast store; the view is applied to it if it has it not yet.
    """

    def __init__(self, store: FeatureStore):
        self.store = store
        try:
            store.get_feature_view(VIEW)
        except FeatureViewNotFoundException:
            store.apply([user, item, user_persona_text_pushed, user_persona_text])

    def look_up(self, user_id: str, most_events: int) -> tuple[ServedPersona | None, list[Event]]:
        """See `PersonaStore.look_up`. Before the lineage has published anything, nobody has a history."""
        try:
            (row,) = online.read(self.store, [*PERSONA, *ACTIVITY], user.join_key, [user_id])
        except FeatureViewNotFoundException:
            (row,) = online.read(self.store, PERSONA, user.join_key, [user_id])
        item_ids = (row.get("user_activity__recent_item_ids") or [])[:most_events]
        labels = (row.get("user_activity__recent_labels") or [])[:most_events]
        return _persona(user_id, row), [
            Event(i, label == 1, cluster)
            for i, label, cluster in zip(item_ids, labels, self._clusters(item_ids), strict=True)
        ]

    def _clusters(self, item_ids: Sequence[str]) -> list[int | None]:
        if not item_ids:
            return []
        try:
            found = online.read(self.store, [CLUSTER], item.join_key, list(item_ids))
        except FeatureViewNotFoundException:
            return [None] * len(item_ids)
        return [row[CLUSTER.replace(":", "__")] for row in found]

    def read(self, user_ids: Sequence[str]) -> dict[str, ServedPersona]:
        """See `PersonaStore.read`."""
        rows = online.read(self.store, PERSONA, user.join_key, list(user_ids)) if user_ids else []
        found = (_persona(u, row) for u, row in zip(user_ids, rows, strict=True))
        return {persona.user_id: persona for persona in found if persona is not None}

    def write(self, personas: Sequence[ServedPersona]) -> None:
        """See `PersonaStore.write`."""
        values: dict[str, list[Any]] = {
            "persona": [p.persona for p in personas],
            "interests": [json.dumps(p.interests) for p in personas],
            "explorations": [json.dumps(p.explorations) for p in personas],
            "clusters": [p.clusters for p in personas],
            "content_key": [p.content_key for p in personas],
            "persona_version": [p.persona_version for p in personas],
            "written_ms": [int(p.written.timestamp() * 1000) for p in personas],
        }
        self._write([p.user_id for p in personas], values, [p.written for p in personas], removed=False)

    def remove(self, user_ids: Iterable[str]) -> None:
        """See `PersonaStore.remove`."""
        gone = list(user_ids)
        self._write(gone, {f: [None] * len(gone) for f in FEATURES}, [dt.datetime.now(dt.UTC)] * len(gone), True)

    def _write(
        self, user_ids: list[str], values: dict[str, list[Any]], moments: list[dt.datetime], removed: bool
    ) -> None:
        if not user_ids:
            return
        types = {"written_ms": pa.int64()}
        columns = {name: pa.array(said, types.get(name, pa.string())) for name, said in values.items()}
        columns |= {EVENT_TIMESTAMP: pa.array(moments, MOMENT), CREATED_TIMESTAMP: pa.array(moments, MOMENT)}
        columns |= {user.join_key: pa.array(user_ids), REMOVED: pa.array([removed] * len(user_ids))}
        online.write(self.store, VIEW, [pa.table(columns)])


def _persona(user_id: str, row: dict[str, Any]) -> ServedPersona | None:
    said = {f: row[f"{VIEW}__{f}"] for f in FEATURES}
    if said["persona"] is None:
        return None
    try:
        written = dt.datetime.fromtimestamp(said.pop("written_ms") / 1000, dt.UTC)
        lists = {f: json.loads(said.pop(f)) for f in ("interests", "explorations")}
    except (ValueError, TypeError):
        # Written anew like one that is missing: it must not keep the users who are read with it from theirs.
        logger.warning("personas: a row of %s is damaged and counts as missing.", VIEW)
        return None
    return ServedPersona(user_id=user_id, written=written, **lists, **said)
