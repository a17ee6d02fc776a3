"""Teacher and student side by side, as a table and a plot, and the curve of the training."""

from typing import Any

import dagster as dg

from assets.figures import shown
from models.personas.release import COMPARED

SHOWN = (
    "ifr",
    "grounding",
    "coverage",
    "exploration_validity",
    "next_cluster_recall",
    "next_cluster_hit",
    "next_novel_hit",
    "exploration_agreement",
)
COSTS = ("calls_per_user", "tokens_per_user", "seconds_per_user")


def fidelity_table(rows: list[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """A line a metric, a column a writer.

    Args:
        rows: Rows of `PERSONA_STUDENTS`.
    """
    lines = ["| | " + " | ".join(row["writer"] for row in rows) + " |", "|---|" + "---|" * len(rows)]
    for name in (*SHOWN, *COSTS):
        digits = 3 if name in SHOWN else 2
        lines.append(f"| {name} | " + " | ".join(f"{row[name]:,.{digits}f}" for row in rows) + " |")
    for name in COMPARED:
        lines.append(f"| {name} less the teacher's | " + " | ".join(_interval(row, name) for row in rows) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _interval(row: dict[str, Any], name: str) -> str:
    if row["writer"] == "teacher" or row[f"{name}_difference"] is None:
        return ""
    value, low, high = (row[f"{name}_difference{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def fidelity_plot(arms: list[Any]) -> dg.MarkdownMetadataValue:
    """The metrics of all writers, as an image in Markdown.

    Args:
        arms: `ray_jobs.personas.distillation.ArmResult` of each writer.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        places = [place + (number - (len(arms) - 1) / 2) * width for place in range(len(SHOWN))]
        axis.bar(places, [arm.metrics[name] for name in SHOWN], width, label=arm.writer)
    axis.set_xticks(range(len(SHOWN)), [name.replace("_", "\n") for name in SHOWN], fontsize=8)
    axis.set(ylim=(0, 1.05), title=f"{arms[0].metrics['users']:.0f} users that no training saw")
    axis.legend(ncols=len(arms), fontsize=8)
    return shown(figure, "teacher and student side by side")


def loss_curve(history: list[dict[str, float]], best_epoch: int) -> dg.MarkdownMetadataValue:
    """Loss on lessons and on those of the dev users, by epoch, as an image in Markdown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    epochs = [record["epoch"] for record in history]
    for name, label in (("loss", "train"), ("loss_dev", "dev")):
        axis.plot(epochs, [record[name] for record in history], marker="o", label=label)
    axis.axvline(best_epoch, linestyle=":", color="grey")
    axis.set(title="loss of the answers' tokens", xlabel="epoch")
    locator: Any = axis.xaxis.get_major_locator()
    locator.set_params(integer=True)
    axis.legend()
    return shown(figure, "training curve")
