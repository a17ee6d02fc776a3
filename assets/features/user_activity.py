"""The asset `features/user_activity`."""

import datetime as dt
import itertools

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.features.histories import activity_by_moment, users_in_buckets
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata, sample_markdown
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.features import USER_ACTIVITY
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import TIMESTAMP

CODE_VERSION = "1"


class UserActivityConfig(Knobs):
    """How histories are summed up."""

    num_recent: int = pydantic.Field(20, ge=1, description="Length of the list of last items.")
    events_in_memory: int = pydantic.Field(
        1_000_000, ge=1, description="Events in memory at once; more are done a share of the users at a time."
    )


@dg.asset(
    key=["features", "user_activity"],
    group_name="features",
    kinds={"python", "deltalake"},
    deps=[["interactions", "splits"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(USER_ACTIVITY),
    tags={"pii": "true"},
)
@data_errors_are_final
def user_activity(
    context: dg.AssetExecutionContext, config: UserActivityConfig, tables: Tables
) -> dg.MaterializeResult:
    """What each user had done right after each moment in which they acted: counts, and the last items.

    Grain: one user after one moment (events of one moment make one row). A row holds from one microsecond after
    its moment, so no event sees itself. Read by Feast's view `user_activity`, and through it by the rankers.

    If this is red: look at `interactions/splits` first, which it is made of; then `rematerialize_failed`.
    """
    report = Report(USER_ACTIVITY)
    version = version_of(splits=tables.version(SPLITS), code=CODE_VERSION, num_recent=config.num_recent)
    if tables.is_current(USER_ACTIVITY, version):
        return report.unchanged(tables, version)
    created = pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP)
    names = [c.name for c in USER_ACTIVITY.columns]
    parts = (
        rows.select(names)
        for events in users_in_buckets(tables.warehouse(), SPLITS, config.events_in_memory)
        for rows in activity_by_moment(events, created, num_recent=config.num_recent)
    )
    first = next(parts, None)
    if first is None:
        raise ValueError("interactions/splits has no events: materialize it from a dataset that is not empty.")
    sample = sample_markdown(USER_ACTIVITY, first)
    written = tables.warehouse().write_batches(USER_ACTIVITY, itertools.chain([first], parts), version)
    return report.result(
        version=version,
        num_rows=written.rows,
        committed=written.committed,
        metadata={"num_recent": config.num_recent, "sample": dg.MetadataValue.md(sample)},
    )
