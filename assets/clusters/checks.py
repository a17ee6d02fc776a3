"""Checks of the stage `clusters`: contracts of its tables, and the gate that collapsed codebooks do not pass."""

import dagster as dg
import numpy as np

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.clusters import (
    CLUSTER_DESCRIPTIONS,
    CLUSTER_PROFILES,
    CODEBOOKS,
    ITEM_EMBEDDINGS,
    QUANTISER_COMPARISON,
    SEMANTIC_IDS,
)

MAX_NORM_ERROR = 0.01
# More than half of the catalogue at few points of the space: the texts, or the encoder, say nothing.
MIN_DISTINCT_SHARE = 0.5
LOOKED_AT = 100_000


def _one_version(column: str) -> Expect:
    return Expect("ColumnUniqueValueCountToBeBetween", column=column, min_value=1, max_value=1)


item_embeddings_checks = table_checks(ITEM_EMBEDDINGS, semantic=[_one_version("embedding_version")])
codebooks_checks = table_checks(
    CODEBOOKS,
    semantic=[
        _one_version("codebook_version"),
        Expect("ColumnValuesToBeBetween", column="level", min_value=0),
        Expect("ColumnValuesToBeBetween", column="code", min_value=0),
        Expect("ColumnValuesToBeBetween", column="items", min_value=0),
    ],
)
semantic_ids_checks = table_checks(
    SEMANTIC_IDS,
    semantic=[
        _one_version("codebook_version"),
        Expect("ColumnValuesToBeUnique", column="semantic_id"),
        Expect("ColumnValuesToMatchRegex", column="semantic_id", regex=r"^\d+(-\d+)+$"),
        Expect("ColumnValuesToBeBetween", column="cluster", min_value=0),
        Expect("ColumnValuesToBeBetween", column="collision", min_value=0),
    ],
)
cluster_profiles_checks = table_checks(
    CLUSTER_PROFILES,
    semantic=[
        _one_version("codebook_version"),
        Expect("ColumnValuesToBeUnique", column="label"),
        Expect("ColumnValueLengthsToBeBetween", column="label", min_value=2),
        Expect("ColumnValuesToBeBetween", column="items", min_value=1),
    ],
)


cluster_descriptions_checks = table_checks(
    CLUSTER_DESCRIPTIONS,
    semantic=[
        Expect("ColumnValuesToBeUnique", column="name"),
        Expect("ColumnValuesToBeUnique", column="description"),
        Expect("ColumnValuesToBeInSet", column="written_by", value_set=["model", "terms"]),
    ],
)
quantiser_comparison_checks = table_checks(
    QUANTISER_COMPARISON,
    semantic=[
        Expect("ColumnValuesToBeBetween", column="unique_rate", min_value=0, max_value=1),
        Expect("ColumnValuesToBeBetween", column="utilisation", min_value=0, max_value=1),
        Expect("ColumnValuesToBeBetween", column="error", min_value=0),
    ],
)


@dg.asset_check(
    asset=dg.AssetKey(["clusters", "item_embeddings"]),
    name="unit_length",
    blocking=True,
    description="Every embedding is finite and of unit length.",
)
def embeddings_have_unit_length(tables: Tables) -> dg.AssetCheckResult:
    """Vectors that are not numbers, or not normalised, would spoil every distance downstream."""
    from ray_jobs.embedding_store import as_matrix

    data = tables.read(ITEM_EMBEDDINGS, ["item_id", "embedding"])
    off_N = np.abs(np.linalg.norm(as_matrix(data["embedding"]), axis=1) - 1)
    bad_N = ~(off_N <= MAX_NORM_ERROR)
    sample = data["item_id"].filter(bad_N).slice(0, 5).to_pylist() if bad_N.any() else []
    return dg.AssetCheckResult(
        passed=not bad_N.any(),
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"bad_rows": int(bad_N.sum()), "threshold": MAX_NORM_ERROR, "failing_sample": ", ".join(sample)},
        description=f"{bad_N.sum()} embeddings are not of unit length, e.g. of {sample}." if bad_N.any() else None,
    )


@dg.asset_check(
    asset=dg.AssetKey(["clusters", "item_embeddings"]),
    name="distinct",
    description="Most items have an embedding of their own.",
)
def embeddings_are_distinct(tables: Tables) -> dg.AssetCheckResult:
    """A catalogue whose texts are all alike cannot be told apart by any quantiser."""
    from ray_jobs.embedding_store import as_matrix

    x_ND = np.round(as_matrix(tables.read(ITEM_EMBEDDINGS, ["embedding"])["embedding"])[:LOOKED_AT], 4)
    rows = np.ascontiguousarray(x_ND).view(np.dtype((np.void, x_ND.dtype.itemsize * x_ND.shape[1])))
    share = len(np.unique(rows)) / len(x_ND)
    passed = share >= MIN_DISTINCT_SHARE or len(x_ND) == 1
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"distinct_share": round(share, 4), "threshold": MIN_DISTINCT_SHARE, "looked_at": len(x_ND)},
        description=None
        if passed
        else (
            f"Only {share:.1%} of the items have an embedding of their own (threshold {MIN_DISTINCT_SHARE:.0%}): give "
            "items titles, descriptions or categories that differ."
        ),
    )


@dg.asset_check(
    asset=dg.AssetKey(["clusters", "codebooks"]),
    name="collapse",
    blocking=True,
    description="The codebooks tell the items of the catalogue apart.",
)
def codebooks_have_not_collapsed(tables: Tables) -> dg.AssetCheckResult:
    """Blocks publishing semantic IDs that many items share; the old table keeps serving."""
    from ray_jobs.clusters.codebook_artifacts import load_assessment

    assessment = load_assessment(tables.artifacts(), tables.version(ITEM_EMBEDDINGS))
    if assessment is None:
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={"failing_sample": ""},
            description="The codebooks were not assessed on today's embeddings: materialize clusters/codebooks.",
        )
    quality, bounds = assessment.quality, assessment.bounds
    return dg.AssetCheckResult(
        passed=not assessment.collapsed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=" ".join(assessment.collapsed) or None,
        metadata={
            "unique_rate": round(quality.unique_rate, 4),
            "unique_rate_threshold": bounds.min_unique_rate,
            "min_entropy_ratio": round(min(q.entropy_ratio for q in quality.levels), 4),
            "min_entropy_ratio_threshold": bounds.min_entropy_ratio,
            "largest_collision_group": quality.largest_group,
            "largest_collision_group_threshold": max(bounds.group_free, round(bounds.max_group_share * quality.items)),
            "action": assessment.action,
            "serving": assessment.serving,
            "codebooks_assessed": assessment.codebooks,
            "failing_sample": " ".join(assessment.collapsed),
        },
    )


@dg.asset_check(
    asset=dg.AssetKey(["clusters", "semantic_ids"]),
    name="complete",
    blocking=True,
    description="Every item with an embedding has a semantic ID, of codebooks that can still be loaded.",
)
def every_item_has_an_id(tables: Tables) -> dg.AssetCheckResult:
    """A ranker that meets an item without an ID would have to guess."""
    from ray_jobs.clusters.codebook_artifacts import load_codebooks

    rows = tables.read(SEMANTIC_IDS, ["item_id", "codes", "codebook_version"])
    spec = load_codebooks(tables.artifacts(), rows["codebook_version"][0].as_py()).spec
    spec.check(np.array(rows["codes"].to_pylist(), np.int64))
    missing = sorted(
        set(tables.read(ITEM_EMBEDDINGS, ["item_id"])["item_id"].to_pylist()) - set(rows["item_id"].to_pylist())
    )
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "items_without_id": len(missing),
            "threshold": 0,
            "failing_sample": ", ".join(missing[:5]),
            "widths": "-".join(map(str, spec.widths)),
        },
        description=f"{len(missing)} items have no semantic ID, e.g. {missing[:5]}." if missing else None,
    )
