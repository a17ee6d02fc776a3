"""What the measures of personas tell people: two tables, a plot, and ten personas with their evidence."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import polars as pl

from assets.figures import inline
from assets.ranking import plots

WRITTEN = "written"
PLOTTED = ("grounding_precision", "owner_mrr", "history_coverage", "exploration_valid")
PLOTTED_LATER = ("next_cluster_hit_seen", "next_cluster_hit_unseen")
OWN = "own"
# The split of held-out users, of whom a student and its teacher saw all but the newest events.
HELD_EVENTS = "held_events"


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _table(rows: list[dict[str, Any]], across: Sequence[tuple[str, ...]], fields: tuple[str, ...]) -> str:
    """One line a measure and arm, one column of values each of ``across``."""
    found = {(r["measure"], r["arm"], *(r[f] for f in fields)): r for r in rows}
    head = ["measure", "arm", *(" ".join(filter(None, a)) for a in across)]
    made = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for measure in dict.fromkeys(r["measure"] for r in rows):
        for arm in dict.fromkeys(r["arm"] for r in rows if r["measure"] == measure):
            cells = [_cell(found.get((measure, arm, *a))) for a in across]
            made.append(f"| {measure} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(made)


def tables_markdown(lines: list[dict[str, Any]]) -> str:
    """Measures against what personas saw, then those against what came later."""
    values = [r for r in lines if not r["baseline"]]
    past = [r for r in values if not r["split_rule"]]
    later = [r for r in values if r["period"]]
    kept = [r for r in values if r["split_rule"] and not r["period"]]
    parts = []
    if past:
        across = [(p,) for p in dict.fromkeys(r["personas"] for r in past)]
        parts.append(_table(past, across, ("personas",)))
    for rows, fields in ((later, ("personas", "split_rule", "period")), (kept, ("personas", "split_rule"))):
        if rows:
            across = list(dict.fromkeys(tuple(r[f] for f in fields) for r in rows))
            parts.append(_table(rows, across, fields))
    return "\n\n".join(parts) or "Nobody has enough history to be measured."


def measures_plot(lines: list[dict[str, Any]], rule: str) -> bytes:
    """Main measures of all personas beside their controls (grey); of later events those of the test split in force."""
    panels: dict[str, list[tuple[str, float, float, float, bool]]] = {}
    recall = [m for m in dict.fromkeys(r["measure"] for r in lines) if m.startswith("recall_at_") and m[10:].isdigit()]
    for measure in (*PLOTTED, *PLOTTED_LATER, *recall):
        rows = [
            r
            for r in lines
            if r["measure"] == measure and not r["baseline"] and (not r["period"] or _in_force(r, rule))
        ]
        if rows:
            panels[measure] = [
                (f"{r['personas']} {r['arm']}", r["value"], r["low"], r["high"], r["arm"] != OWN) for r in rows
            ]
    return plots.forest(panels, "value", {})


def _in_force(row: dict[str, Any], rule: str) -> bool:
    return bool(row["split_rule"] in (rule, HELD_EVENTS) and row["period"] == "test")


def personas_markdown(shown: list[Any]) -> str:
    """Personas as analysts read them: what is said, what it rests on, and whether that carries it."""
    parts = []
    for number, persona in enumerate(shown, start=1):
        parts += [f"**{number}. {persona.why}** (user •••)", "", f"> {persona.persona}", ""]
        parts += ["| interest | share of likes | shown by | nearest cited item | grounded |", "|---|---|---|---|---|"]
        for i in persona.interests:
            titles = "; ".join(i["evidence_titles"]).replace("|", "/")
            told = "yes" if i["grounded"] else "no"
            parts.append(f"| {i['label']} | {i['share']:.0%} | {titles} | {i['score']:.2f} | {told} |")
        parts += [f"| new: {label} | | never touched | | |" for label in persona.explorations]
        parts.append("")
    return "\n".join(parts) or "Fewer than two users have a persona."


def personas_columns(shown: list[Any]) -> dict[str, list[Any]]:
    """The same as a table that MLflow browses: one row an interest."""
    rows = [
        {
            "number": number,
            "chosen": persona.why,
            "persona": persona.persona,
            "new": "; ".join(persona.explorations),
            "interest": i["label"],
            "share_of_likes": round(i["share"], 4),
            "shown_by": "; ".join(i["evidence_titles"]),
            "cosine_of_nearest_cited_item": round(i["score"], 4),
            "grounded": i["grounded"],
        }
        for number, persona in enumerate(shown, start=1)
        for i in persona.interests
    ]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def headline(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The main figures of the table of personas, by name."""
    return {
        f"{r['measure']}{'' if r['arm'] == OWN else '_' + r['arm']}": round(r["value"], 4)
        for r in lines
        if r["personas"] == WRITTEN and not r["baseline"] and r["measure"] in ("instruction_following_rate", *PLOTTED)
    }


def said_of(lines: list[dict[str, Any]], plot: bytes, result: Any) -> dict[str, Any]:
    """Metadata of the asset.

    Args:
        lines: Rows of the table.
        plot: As `measures_plot` draws it.
        result: `ray_jobs.personas.measures.Result`.
    """
    return (
        headline(lines)
        | {
            "measures": dg.MetadataValue.md(tables_markdown(lines)),
            "plot": inline(plot, "measures of personas with controls"),
            "personas_with_evidence": dg.MetadataValue.md(personas_markdown(result.shown)),
            "left_out": dg.MetadataValue.md("\n".join(f"- {x}" for x in result.left_out) or "nothing"),
            "choices_from_store": result.choices_from_store,
            "choices_planned": result.choices_planned,
            "choices": "Measures of planned personas take the model's choice of what to explore where it chose for the "
            "same content, and the most similar candidate for the others.",
        }
        | {f"grounding_threshold_{name}": round(value, 4) for name, value in result.thresholds.items()}
    )


def measures_csv(lines: list[dict[str, Any]]) -> bytes:
    """Every figure."""
    return pl.DataFrame(lines, infer_schema_length=None).drop("created_timestamp", strict=False).write_csv().encode()
