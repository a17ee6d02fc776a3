"""What the sweeps tell people: one table and one plot each."""

from typing import Any

METRICS = ("auc", "group_auc", "normalized_entropy")
AXES = {
    "seeds": "summary tokens",
    "precision": "precision of kept summaries",
    "staleness": "newest events missed",
    "length": "most events seen",
}


def table_markdown(lines: list[dict[str, Any]], sweep: str) -> str:
    """Metrics at every point with their intervals, and what it costs."""
    mine = [x for x in lines if x["sweep"] == sweep]
    metrics = [m for m in METRICS if any(x["metric"] == m for x in mine)]
    head = [AXES[sweep], *metrics, mine[0]["cost_name"], "seeds"]
    made = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in dict.fromkeys(x["point"] for x in mine):
        found = {x["metric"]: x for x in mine if x["point"] == point}
        cells = [f"{x['value']:.4f} [{x['low']:.4f}, {x['high']:.4f}]" for x in (found[m] for m in metrics)]
        first = found[METRICS[0]]
        made.append("| " + " | ".join([point, *cells, f"{first['cost']:,.2f}", str(first["num_seeds"])]) + " |")
    return "\n".join(made)


def plot(lines: list[dict[str, Any]], sweep: str) -> bytes:
    """AUC with its interval by the sweep's points, and the cost on the other axis."""
    from assets.figures import blank, png

    mine = [x for x in lines if x["sweep"] == sweep and x["metric"] == METRICS[0]]
    figure, axes = blank(6.0, 3.2)
    places = range(len(mine))
    value = [x["value"] for x in mine]
    ends = [[max(x["value"] - x["low"], 0) for x in mine], [max(x["high"] - x["value"], 0) for x in mine]]
    axes.errorbar(places, value, yerr=ends, fmt="o-", markersize=4, capsize=3, color="tab:blue")
    axes.set_xticks(places, [x["point"] for x in mine])
    axes.set(xlabel=AXES[sweep], ylabel="AUC on test")
    other = axes.twinx()
    other.plot(places, [x["cost"] for x in mine], "s--", markersize=4, color="tab:orange")
    other.set_ylabel(mine[0]["cost_name"], color="tab:orange")
    other.set_yscale("log")
    return png(figure)
