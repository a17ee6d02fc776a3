"""Whether a registered ranker can read the generated content that is served today."""

import json
from typing import Any

from assets.experiments.records import Pointer
from assets.resources import Ledger, Tables
from models.ranking.content import SUMMARY, TOKENS
from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.vista import HELD_SUMMARIES, USER_SUMMARIES
from ray_jobs.warehouse import Table, Warehouse

# Column of the version in rows of the training set: what it is, the table that it comes from and its column there.
CONTENT = {
    TOKENS.version: (TOKENS, ((CAPTION_TOKENS, "token_version"),)),
    SUMMARY.version: (SUMMARY, ((USER_SUMMARIES, "summary_version"), (HELD_SUMMARIES, "summary_version"))),
}
PREPROCESSING = "preprocessing.json"


def content_of(tables: Tables, ledger: Ledger, pointer: Pointer) -> dict[str, str]:
    """Content versions that a ranker was trained on, by the column that carries them; empty if its files are gone."""
    for record in ledger.candidates():
        if (record.name, record.version) == (pointer.candidate, pointer.candidate_version):
            if not tables.artifacts().exists(record.artifact):
                return {}
            with tables.artifacts().local(record.artifact) as folder:
                said: dict[str, Any] = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
            return dict(said.get("content_versions", {}))
    return {}


def served_versions(warehouse: Warehouse, tables: tuple[tuple[Table, str], ...]) -> list[str]:
    """Content versions that requests are served, the newest first; a table has one."""
    held = (warehouse.first(table, column) for table, column in tables if warehouse.exists(table))
    return [version for version in held if version is not None]


def why_unreadable(tables: Tables, ledger: Ledger, pointer: Pointer) -> str | None:
    """Why a ranker would refuse every request, and what to do about it; None if it would not."""
    for column, version in content_of(tables, ledger, pointer).items():
        content, origins = CONTENT[column]
        served = served_versions(tables.warehouse(), origins)
        if version and served and version not in served:
            return (
                f"Version {pointer.registry_version} ({pointer.label}) reads {content.what} of version {version}, but "
                f"{content.table} holds {served[0]}, so that it would refuse every request: name a "
                f"ranker that reads {served[0]} or none, or bring {content.table} back to version {version} first."
            )
    return None
