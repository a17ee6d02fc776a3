"""Asset `interactions/splits`."""

import datetime as dt
from typing import Literal

import dagster as dg
from pydantic import Field

from assets.interactions import examples
from assets.interactions.charts import examples_by_split
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Dataset, Tables
from models.identity import version_of
from ray_jobs.tables.interactions import ITEMS, RAW_INTERACTIONS, SPLITS

CODE_VERSION = "1"


class SplitsConfig(Knobs):
    """How examples are labelled and split."""

    split: Literal["", "global_time", "leave_one_out"] = Field(
        "", description="The split in force; empty takes BELVEDERE_SPLIT, which is `global_time` by default."
    )
    train_fraction: float = Field(0.8, gt=0, lt=1, description="Share of events, by time, in train (global_time).")
    valid_fraction: float = Field(0.1, ge=0, lt=1, description="Share of events, by time, in valid; the rest is test.")
    positive_value: float | None = Field(
        None, description="Least value of a positive; empty: 80 % of the largest value of the event's action."
    )
    seed: int = Field(17, description="Seed of sampled negatives.")


@dg.asset(
    key=["interactions", "splits"],
    group_name="interactions",
    kinds={"delta", "polars"},
    code_version=CODE_VERSION,
    deps=[["interactions", "raw_interactions"], ["interactions", "items"]],
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(SPLITS),
    tags={"tier": "silver", "pii": "true"},
)
def splits(config: SplitsConfig, tables: Tables, dataset: Dataset) -> dg.MaterializeResult:
    """Labelled examples: every event with its label, its place in the user's history and its split.

    Grain: one event, or one sampled negative where the data has no negatives; `example_id` is the key.
    Consumers: every ranker and every offline evaluation. Ties in time are broken by input order (`sequence`).
    If this is red: no event reaches `positive_value`, or a split is empty or leaks; the error or the check
    says which, and the config mends it.
    """
    report = Report(SPLITS)
    split = config.split or dataset.split
    settings = {
        "split": split,
        "fractions": [config.train_fraction, config.valid_fraction],
        "positive_value": config.positive_value,
        "seed": config.seed,
    }
    version = version_of(
        inputs=[tables.version(RAW_INTERACTIONS), tables.version(ITEMS)], code=CODE_VERSION, params=settings
    )
    if tables.is_current(SPLITS, version):
        return report.unchanged(tables, version)
    if not tables.warehouse().num_rows(RAW_INTERACTIONS):
        raise dg.Failure(
            "There are no events to split: look into interactions/quarantine for the reason.",
            allow_retries=False,
        )
    settled = examples.plan(tables, (config.train_fraction, config.valid_fraction), config.positive_value)
    if not settled.positives:
        raise dg.Failure(
            f"No event reaches the value of a positive ({settled.least}): lower positive_value in the config "
            "of interactions/splits.",
            allow_retries=False,
        )
    rows = examples.examples(tables, settled, split, config.seed, dt.datetime.now(dt.UTC))
    written = tables.warehouse().write_batches(SPLITS, rows, version)
    sizes, positives, sampled = examples.sizes(tables)
    return report.result(
        version=version,
        num_rows=written.rows,
        committed=written.committed,
        metadata=sizes
        | {
            "split": split,
            "positive_rate": positives / written.rows,
            "sampled_negatives": sampled,
            "thresholds": str(settled.least or "none: implicit events"),
            "valid_from": str(settled.cuts.valid_from),
            "test_from": str(settled.cuts.test_from),
            "seed": config.seed,
            "examples_by_split": dg.MetadataValue.md(examples_by_split(sizes)),
        },
    )
