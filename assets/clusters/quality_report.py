"""What the quality of semantic IDs looks like in the Dagster UI: numbers, one table, one plot."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets.figures import blank, shown

if TYPE_CHECKING:
    from ray_jobs.clusters.codebook_artifacts import Assessment


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


def comparison_metadata(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A table of quantisers and levels, numbers of each quantiser by name, and a plot of their errors."""
    columns = ["method", "level", "width", "used", "entropy_ratio", "error", "held_error", "unique_rate", "seconds"]
    made = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for line in lines:
        cells = [f"{line[c]:.4f}" if isinstance(line[c], float) else str(line[c]) for c in columns]
        made.append("| " + " | ".join(cells) + " |")
    figure, axis = blank()
    said: dict[str, Any] = {}
    for method in dict.fromkeys(line["method"] for line in lines):
        ours = [line for line in lines if line["method"] == method]
        axis.plot([line["level"] for line in ours], [line["held_error"] for line in ours], marker="o", label=method)
        last = ours[-1]
        said |= {f"{method}_{name}": last[name] for name in ("error", "held_error", "unique_rate", "largest_group")}
        said |= {f"{method}_collided": last["collided"], f"{method}_seconds": last["seconds"]}
        said |= {f"{method}_min_utilisation": min(line["utilisation"] for line in ours)}
    axis.set(title="error of items that no fit saw", xlabel="level", ylabel="share of variance")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return said | {
        "quantisers": dg.MetadataValue.md("\n".join(made)),
        "errors": shown(figure, "errors of quantisers by level"),
    }
