"""What the quality of semantic IDs looks like in the Dagster UI: numbers, one table, one plot."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets.figures import blank, shown

if TYPE_CHECKING:
    from ray_jobs.codebook_artifacts import Assessment


def histogram(sizes: np.ndarray, *, title: str, unit: str) -> dg.MetadataValue:
    """Histogram of group sizes."""
    figure, axis = blank()
    axis.hist(sizes, bins=min(30, max(5, len(np.unique(sizes)))), color="#4a6fa5")
    axis.set(title=title, xlabel=f"items in a {unit}", ylabel=f"number of {unit}s")
    return shown(figure, title)


def quality_metadata(assessment: "Assessment") -> dict[str, Any]:
    """Metadata of an assessment: numbers by name, and one table by level."""
    quality = assessment.quality
    columns = ["level", "width", "used", "utilisation", "entropy_nats", "entropy_ratio", "reconstruction_error"]
    rows = [
        dg.TableRecord(
            {
                "level": i,
                "width": q.width,
                "used": q.used,
                "utilisation": round(q.utilisation, 4),
                "entropy_nats": round(q.entropy, 4),
                "entropy_ratio": round(q.entropy_ratio, 4),
                "reconstruction_error": round(q.error, 4),
            }
        )
        for i, q in enumerate(quality.levels)
    ]
    schema = dg.TableSchema([dg.TableColumn(c, "int" if c in columns[:3] else "float") for c in columns])
    return {
        "unique_rate": round(quality.unique_rate, 4),
        "items_in_collisions": quality.collided,
        "largest_collision_group": quality.largest_group,
        "items": quality.items,
        "reconstruction_error": round(quality.levels[-1].error, 4),
        "min_entropy_ratio": round(min(q.entropy_ratio for q in quality.levels), 4),
        "min_utilisation": round(min(q.utilisation for q in quality.levels), 4),
        "levels": len(quality.levels),
        "action": assessment.action,
        "reason": assessment.reason,
        "fit_seconds": round(assessment.seconds, 2),
        "codebooks_assessed": assessment.codebooks,
        "quality_by_level": dg.MetadataValue.table(rows, schema),
    }
