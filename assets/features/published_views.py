"""Which table each Feast view is published from, and its publication."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from assets.resources import Features, Tables
from feature_repo.publications import MOST_IN_GROUP, Publication
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.features import ITEM_POPULARITY, USER_ACTIVITY
from ray_jobs.tables.personas import USER_PERSONAS
from ray_jobs.tables.vista import HELD_SUMMARIES, USER_SUMMARIES
from ray_jobs.vista.summary_rollout import held_rows, held_version
from ray_jobs.warehouse import Table, Warehouse

CODE_VERSION = "1"
TIMES = ("event_timestamp", "created_timestamp")


@dataclasses.dataclass(frozen=True)
class View:
    """A Feast view's origin.

    Attributes:
        name: Name of the view.
        table: Table that it is published from.
        key: Join key.
        features: Columns of the table, in the order of the view's schema.
        content_version: The one of them that carries the version of generated content; empty for counts.
        newest_of_tie: Column whose largest value counts where an entity has several rows of one moment.
        rows: What is published of the table, where that is not all of its rows; it may not be there yet.
    """

    name: str
    table: Table
    key: str
    features: tuple[str, ...]
    content_version: str = ""
    newest_of_tie: str = ""
    rows: Callable[[Warehouse], Iterator[pa.Table]] | None = None


VIEWS = (
    View("item_popularity", ITEM_POPULARITY, "item_id", ("num_events", "num_likes", "mean_value")),
    View("item_captions", CAPTION_TOKENS, "item_id", ("token_ids", "token_version"), "token_version"),
    View("item_semantic_ids", SEMANTIC_IDS, "item_id", ("codes", "cluster", "codebook_version"), "codebook_version"),
    View(
        "user_activity",
        USER_ACTIVITY,
        "user_id",
        ("num_events", "num_likes", "mean_value", "recent_item_ids", "recent_labels"),
    ),
    View("user_persona", USER_PERSONAS, "user_id", ("embedding", "persona_version"), "persona_version"),
    # What is held for the champion comes before what it cannot read: in between it would refuse every request.
    View(
        "user_vista_held",
        HELD_SUMMARIES,
        "user_id",
        ("summary", "scales", "summary_version"),
        "summary_version",
        rows=held_rows,
    ),
    View(
        "user_vista",
        USER_SUMMARIES,
        "user_id",
        ("summary", "scales", "summary_version"),
        "summary_version",
        "num_events",
    ),
)
BY_NAME = {view.name: view for view in VIEWS}


def publication_version(tables: Tables, view: View) -> str:
    """Version that a view's publication must have to be current."""
    if view.rows is not None:
        held = held_version(tables.warehouse())
        # A user who is new since then gets a row, too.
        users = tables.version(USER_SUMMARIES) if held is not None else None
        return version_of(table=held, users=users, code=CODE_VERSION, features=view.features)
    return version_of(table=tables.version(view.table), code=CODE_VERSION, features=view.features)


def publish(tables: Tables, features: Features, views: Iterable[View]) -> dict[str, Publication]:
    """Publishes what has changed of ``views`` and returns what is published of them, by name.

    Raises:
        FileNotFoundError: If the table of a view was never written.
        ValueError: If a table mixes several versions of generated content.
    """
    found = {}
    for view in views:
        version = publication_version(tables, view)
        standing = features.publications().current(view.name)
        if standing is None or standing.version != version:
            warehouse = tables.warehouse()
            features.publish(view.name, _rows(warehouse, view), version, _content_version(warehouse, view))
            standing = features.publications().current(view.name)
        assert standing is not None
        found[view.name] = standing
    return found


def _content_version(warehouse: Warehouse, view: View) -> str:
    if not view.content_version:
        return ""
    if view.rows is not None:
        return held_version(warehouse) or ""
    seen: set[str] = set()
    for part in warehouse.batches(view.table, [view.content_version]):
        seen.update(pc.unique(part[view.content_version]).to_pylist())
    if len(seen) > 1:
        raise ValueError(
            f"{view.table.name} mixes versions {', '.join(sorted(seen)[:3])} in {view.content_version}: "
            f"materialize {view.table.name} again, so that all rows have one."
        )
    return seen.pop() if seen else ""


def _rows(warehouse: Warehouse, view: View) -> pa.RecordBatchReader:
    names = [view.key, *view.features, *TIMES]
    schema = pa.schema([(c.name, c.type) for n in names for c in view.table.columns if c.name == n])
    parts: Iterator[pa.Table]
    if view.rows is not None:
        parts = (part.select(names).cast(schema) for part in view.rows(warehouse))
    elif not view.newest_of_tie:
        parts = warehouse.batches(view.table, names, num_rows=MOST_IN_GROUP)
    else:
        keys = pl.concat(
            [pl.DataFrame(p) for p in warehouse.batches(view.table, [view.key, "event_timestamp", view.newest_of_tie])]
            or [pl.DataFrame(schema=[view.key, "event_timestamp", view.newest_of_tie])]
        )
        best = keys.group_by(view.key, "event_timestamp").agg(pl.col(view.newest_of_tie).max())
        found = warehouse.batches(view.table, [*names, view.newest_of_tie], num_rows=MOST_IN_GROUP)
        parts = (_only(part, best, view).select(names) for part in found)
    return pa.RecordBatchReader.from_batches(schema, (b for part in parts for b in part.to_batches()))


def _only(part: pa.Table, best: pl.DataFrame, view: View) -> pa.Table:
    """The rows of ``part`` that are the newest of their moment."""
    keys = pl.DataFrame(part.select(best.columns)).with_row_index("row")
    return part.take(keys.join(best, on=best.columns, how="semi").sort("row")["row"].to_arrow())
