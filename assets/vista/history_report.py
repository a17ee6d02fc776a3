"""What the comparison of history models tells people: a table, its trials, verdicts and a plot."""

from typing import Any

import polars as pl

SHOWN = {
    "next_item": ("ndcg_at_10", "hr_at_10", "hr_at_50", "hr_at_200"),
    "click": ("auc", "request_auc", "group_auc", "normalized_entropy"),
}
SHUFFLED = "_shuffled"
FLOORS = ("popularity", "item_knn", "markov_chain")


def is_control(model: str) -> bool:
    """Whether a model is a floor or a placebo."""
    return model.endswith(SHUFFLED) or model in FLOORS


def _figures(lines: list[dict[str, Any]], objective: str, metric: str) -> dict[str, dict[str, Any]]:
    key = (objective, metric, "")
    return {x["model"]: x for x in lines if (x["objective"], x["metric"], x["baseline"]) == key}


def _objectives(lines: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(x["objective"] for x in lines))


def table_markdown(lines: list[dict[str, Any]]) -> str:
    """Every model's metrics with their intervals, its seeds, chosen trial and cost; a table an objective."""
    made = []
    for objective in _objectives(lines):
        by_metric = {metric: _figures(lines, objective, metric) for metric in SHOWN[objective]}
        found = {metric: figures for metric, figures in by_metric.items() if figures}
        metrics = tuple(found)
        head = [objective, *metrics, "seeds", "seconds a training", "trial"]
        made += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for model, row in found[metrics[0]].items():
            each = [found[metric][model] for metric in metrics]
            cells = [f"{x['value']:.4f} [{x['low']:.4f}, {x['high']:.4f}]" for x in each]
            seconds = "" if row["train_seconds"] is None else f"{row['train_seconds']:,.0f}"
            made.append("| " + " | ".join([model, *cells, str(row["num_seeds"]), seconds, row["trial"] or ""]) + " |")
        made.append("")
    return "\n".join(made)


def trials_markdown(tuned: list[Any]) -> str:
    """Every trial with what it came to on validation; the chosen ones are marked."""
    made = ["| objective | model | learning rate | dropout | valid | chosen |", "|---|---|---|---|---|---|"]
    for t in tuned:
        cells = [t.objective, t.model, f"{t.trial.learning_rate:g}", f"{t.trial.dropout:g}", f"{t.valid:.4f}"]
        made.append("| " + " | ".join([*cells, "yes" if t.chosen else ""]) + " |")
    return "\n".join(made)


def verdicts(lines: list[dict[str, Any]]) -> list[str]:
    """What the differences in the deciding metric say."""
    return [x["verdict"] for x in lines if x["verdict"]]


def plot(lines: list[dict[str, Any]]) -> bytes:
    """The two first metrics of each objective with intervals; floors and placebos are grey."""
    from matplotlib.figure import Figure

    from assets.figures import png

    panels = [(o, metric) for o in _objectives(lines) for metric in SHOWN[o][:2]]
    most = max((len(_figures(lines, *panel)) for panel in panels), default=1)
    rows = max(len(panels) // 2, 1)
    figure = Figure(figsize=(10, rows * (0.28 * most + 1.0)), dpi=90, layout="constrained")
    for at, (objective, metric) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, at + 1)
        found = _figures(lines, objective, metric)
        for place, (model, x) in zip(range(len(found))[::-1], found.items(), strict=True):
            ends = [[max(x["value"] - x["low"], 0)], [max(x["high"] - x["value"], 0)]]
            color = "0.6" if is_control(model) else "tab:blue"
            axes.errorbar(x["value"], place, xerr=ends, fmt="o", markersize=4, capsize=3, color=color)
        axes.set_yticks(range(len(found))[::-1], list(found), fontsize=7)
        axes.set_title(f"{objective}: {metric}", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    return png(figure)


def table_csv(lines: list[dict[str, Any]]) -> bytes:
    """Every figure."""
    return pl.DataFrame(lines, infer_schema_length=None).drop("created_timestamp", strict=False).write_csv().encode()
