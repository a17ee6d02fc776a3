"""Checks of `personas/persona_measures`: what the personas of the table must be better at than chance."""

import json

import dagster as dg
import polars as pl

from assets.expectations import Expect
from assets.personas.measure_report import OWN, WRITTEN
from assets.quality import table_checks
from assets.resources import Tables
from assets.run_inputs import split_rule
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_MEASURES

KEY = dg.AssetKey(["personas", "persona_measures"])
MIN_FOLLOWED = 0.9
# Fewer users than this say nothing, whatever their interval.
MIN_USERS = 20
PERSONAS = [WRITTEN, "semantic_ids", "salient_terms", "teacher", "student"]

persona_measures_checks = table_checks(
    PERSONA_MEASURES,
    min_rows=0,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="personas", value_set=PERSONAS),
        Expect("ColumnValuesToBeInSet", column="period", value_set=["", "valid", "test"]),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="high", column_B="low", or_equal=True),
    ],
)


def _measured(tables: Tables, measure: str, personas: str = WRITTEN) -> pl.DataFrame:
    found = pl.DataFrame(tables.read(PERSONA_MEASURES))
    return found.filter((pl.col("measure") == measure) & (pl.col("personas") == personas) & (pl.col("arm") == OWN))


def _told(
    rows: pl.DataFrame, wrong: pl.DataFrame, threshold: float, sentence: str, severity: dg.AssetCheckSeverity
) -> dg.AssetCheckResult:
    """Failed by ``wrong`` rows of enough users; rows of few users are shown and judge nothing."""
    shown = ("baseline", "value", "low", "high", "num_users")
    wrong = wrong.filter(pl.col("num_users") >= MIN_USERS)
    few = rows.filter(pl.col("num_users") < MIN_USERS).height == rows.height
    told = f"Fewer than {MIN_USERS} users: too few to judge." if few else None
    return dg.AssetCheckResult(
        passed=wrong.is_empty(),
        severity=severity,
        description=told if wrong.is_empty() else sentence,
        metadata={
            "observed": str(rows.select(shown).rows()),
            "threshold": threshold,
            "failing_sample": str(wrong.select(shown).rows()),
        },
    )


@dg.asset_check(
    asset=KEY,
    name="instructions_followed",
    description=f"At least {MIN_FOLLOWED:.0%} of the planned personas are whole; dead letters count as failures.",
)
def instructions_are_followed(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    rows = _measured(tables, "instruction_following_rate")
    return _told(
        rows,
        rows.filter(pl.col("value") < MIN_FOLLOWED),
        MIN_FOLLOWED,
        "Too many personas lack an interest or an exploration that was asked for: personas/dead_letters names reasons.",
        dg.AssetCheckSeverity.ERROR,
    )


@dg.asset_check(
    asset=KEY,
    name="grounded",
    description="Claims follow from what they cite more often than from what other users cite, by the interval.",
)
def claims_are_grounded(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    rows = _measured(tables, "grounding_precision").filter(pl.col("baseline") == "other_user")
    return _told(
        rows,
        rows.filter(pl.col("low") <= 0),
        0.0,
        "What personas claim follows from other users' items as well: look at the worst grounded ones in MLflow.",
        dg.AssetCheckSeverity.ERROR,
    )


@dg.asset_check(
    asset=KEY,
    name="specific",
    description="A persona finds its owner among random others better than another user's does, by the interval.",
)
def personas_are_specific(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    rows = _measured(tables, "owner_mrr").filter(pl.col("baseline") == "other_user")
    return _told(
        rows,
        rows.filter(pl.col("low") <= 0),
        0.0,
        "Personas fit other users as well as their own: the labels of clusters say too little.",
        dg.AssetCheckSeverity.ERROR,
    )


@dg.asset_check(
    asset=KEY,
    name="retrieval",
    description="At an equal budget no control finds reliably more later likes than restriction by the persona.",
)
def restriction_is_worth_it(tables: Tables) -> dg.AssetCheckResult:
    """See the description. A warning: on little data most differences are uncertain."""
    rule = split_rule(tables)
    (row,) = tables.read(PERSONA_COVERAGE, ["parameters"]).to_pylist()
    grouping = json.loads(row["parameters"])["interests"]["grouping"]
    found = pl.DataFrame(tables.read(PERSONA_MEASURES)).filter(
        pl.col("measure").str.contains(r"^recall_at_\d+$")
        & (pl.col("personas") == grouping)
        & (pl.col("split_rule") == rule)
        & (pl.col("period") == "test")
        & (pl.col("baseline") != "")
    )
    worse = found.filter(pl.col("high") < 0)
    sentence = f"{', '.join(worse['baseline'])}: finds more of what users like later than the persona does."
    return _told(found, worse, 0.0, sentence, dg.AssetCheckSeverity.WARN)
