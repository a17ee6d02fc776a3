"""The asset `features/training_set`."""

import enum

import dagster as dg
import pydantic

from assets.failures import data_errors_are_final
from assets.features.joining import JOINED_VIEWS, Joined
from assets.features.plots import shares
from assets.features.published_views import publication_version, publish
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata, sample_markdown
from assets.resources import Features, Tables
from models.identity import version_of
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import SPLITS

CODE_VERSION = "2"


class PointInTime(enum.Enum):
    """What an example may know."""

    EVENT = "event"
    KNOWLEDGE = "knowledge"


class TrainingSetConfig(Knobs):
    """How the training set is joined."""

    point_in_time: PointInTime = pydantic.Field(
        PointInTime.EVENT,
        description="`event`: facts that held at the example's moment, whenever they were written; right for "
        "historical datasets, which are replayed. `knowledge`: only what was also written by then; right "
        "for live data with back-fills.",
    )
    chunk_rows: int = pydantic.Field(100_000, ge=1, description="Examples that are joined, and in memory, at once.")


@dg.asset(
    key=["features", "training_set"],
    group_name="features",
    kinds={"feast", "duckdb", "deltalake"},
    deps=[
        ["interactions", "splits"],
        ["features", "item_popularity"],
        ["features", "user_activity"],
        ["captions", "caption_tokens"],
        ["clusters", "semantic_ids"],
        ["vista", "user_summaries"],
    ],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(TRAINING_SET),
    tags={"pii": "true", "tier": "gold"},
)
@data_errors_are_final
def training_set(
    context: dg.AssetExecutionContext, config: TrainingSetConfig, tables: Tables, features: Features
) -> dg.MaterializeResult:
    """Every labelled example with the features of items and users as of the example's own moment.

    Grain: one example of `interactions/splits`. Joined point in time by Feast (DuckDB), in chunks. Read by the
    candidates of `ranking`, each of which takes the columns of its FeatureService. Content carries its version.

    If this is red: `no_rows_lost` means that the join dropped or doubled examples; do not train on it. A content
    version that is refused means that captions, codebooks or summaries are older than what is published:
    `rematerialize_failed`.
    """
    report = Report(TRAINING_SET)
    version = version_of(
        splits=tables.version(SPLITS),
        code=CODE_VERSION,
        point_in_time=config.point_in_time.value,
        views={view.name: publication_version(tables, view) for view in JOINED_VIEWS},
    )
    if tables.is_current(TRAINING_SET, version):
        return report.unchanged(tables, version)
    published = publish(tables, features, JOINED_VIEWS)
    joined = Joined(
        features.store(),
        tables.warehouse(),
        published,
        chunk_rows=config.chunk_rows,
        by_knowledge=config.point_in_time is PointInTime.KNOWLEDGE,
    )
    written = tables.warehouse().write_batches(TRAINING_SET, joined.chunks(), version)
    present = joined.shares_present()
    said = {"sample": dg.MetadataValue.md(sample_markdown(TRAINING_SET, joined.first))} if joined.first else {}
    return report.result(
        version=version,
        num_rows=written.rows,
        committed=written.committed,
        metadata=said
        | {
            "point_in_time": config.point_in_time.value,
            "content_versions": {name: p.content_version for name, p in published.items() if p.content_version},
            "examples_with_feature": dg.MetadataValue.md(
                shares(present, "share of the examples that have the feature")
            ),
        },
    )
