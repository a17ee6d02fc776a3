"""What the content experiment tells people: a table, verdicts and a forest plot."""

from typing import Any

import polars as pl

from assets.ranking import plots

TABLED = ("auc", "normalized_entropy", "logloss", "ndcg_at_10", "hr_at_10")
SLICES = ("all", "new_items", "tail_items")
PLACEBO_ENDS = ("_permuted", "_random")


def arm_name(arm: str, item_ids: bool) -> str:
    """How an arm is called."""
    return f"{arm} {'+ IDs' if item_ids else 'no IDs'}"


def is_placebo(arm: str) -> bool:
    """Whether an arm is a placebo."""
    return arm.endswith(PLACEBO_ENDS)


def _cell(row: dict[str, Any] | None, difference: bool) -> str:
    if row is None:
        return ""
    sign = "+" if difference else ""
    return f"{row['value']:{sign}.4f} [{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"


def table_markdown(lines: list[dict[str, Any]]) -> str:
    """Each arm's AUC and its differences to no content, on the whole test split and on each slice."""
    by_key = {(x["split_rule"], x["arm"], x["item_ids"], x["slice"], x["metric"], x["baseline"]): x for x in lines}
    shown = [("ΔAUC", s, "auc") for s in SLICES] + [("ΔNE", s, "normalized_entropy") for s in SLICES]
    shown += [("ΔNDCG@10", "all", "ndcg_at_10")]
    head = ["split", "arm", "AUC", *(f"{name} {where}" for name, where, _ in shown), "relative ΔAUC", "counts"]
    made = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for rule, arm, ids in dict.fromkeys((x["split_rule"], x["arm"], x["item_ids"]) for x in lines):
        key = (rule, arm, ids)
        lift = by_key.get((*key, "all", "auc", "none"))
        cells = [rule, arm_name(arm, ids), _cell(by_key.get((*key, "all", "auc", "")), False)]
        cells += [_cell(by_key.get((*key, where, metric, "none")), True) for _, where, metric in shown]
        cells.append("" if lift is None or lift["relative"] is None else f"{lift['relative']:+.2%}")
        cells.append("" if lift is None or lift["counts"] is None else "yes" if lift["counts"] else "no")
        made.append("| " + " | ".join(cells) + " |")
    return "\n".join(made)


def verdicts(lines: list[dict[str, Any]], where: tuple[str, ...] = SLICES) -> list[str]:
    """The verdicts, those on the whole test split first."""
    judged = [x for x in lines if x["verdict"] and x["slice"] in where]
    return [x["verdict"] for x in sorted(judged, key=lambda x: where.index(x["slice"]))]


def forest_plot(lines: list[dict[str, Any]]) -> bytes:
    """Differences in AUC to no content, a panel a split rule and slice, with the published lift as a dashed line."""
    from models.ranking.ablation import PUBLISHED_LIFT

    panels: dict[str, list[tuple[str, float, float, float, bool]]] = {}
    marked = {}
    for rule in dict.fromkeys(x["split_rule"] for x in lines):
        for where in SLICES:
            rows = [
                (arm_name(x["arm"], x["item_ids"]), x["value"], x["low"], x["high"], is_placebo(x["arm"]))
                for x in lines
                if (x["split_rule"], x["slice"], x["metric"], x["baseline"]) == (rule, where, "auc", "none")
            ]
            if not rows:
                continue
            title = f"{rule}, {where}"
            panels[title] = rows
            base = [
                x["value"]
                for x in lines
                if (x["split_rule"], x["slice"], x["metric"], x["arm"]) == (rule, where, "auc", "none")
                and x["item_ids"]
                and not x["baseline"]
            ]
            if base and where == "all":
                marked[title] = PUBLISHED_LIFT * base[0]
    return plots.forest(panels, "difference in AUC to no content", marked)


def table_csv(lines: list[dict[str, Any]]) -> bytes:
    """Every figure."""
    return pl.DataFrame(lines, infer_schema_length=None).drop("created_timestamp", strict=False).write_csv().encode()
