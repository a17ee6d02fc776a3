"""Personas as analysts read them: text and evidence side by side, without the user's name."""

import dagster as dg
import pyarrow as pa

NUM_SAMPLES = 5


def sample_personas(data: pa.Table) -> dg.MetadataValue:
    """Some personas spread over the table, each with its evidence; user ids are masked.

    Args:
        data: Rows of `USER_PERSONAS`.
    """
    step = max(1, data.num_rows // NUM_SAMPLES)
    lines = []
    chosen = pa.array(range(0, data.num_rows, step), pa.int64())[:NUM_SAMPLES]
    for number, row in enumerate(data.take(chosen).to_pylist(), start=1):
        lines += [f"**Persona {number}** (user •••, {row['num_events']:,} events)", "", f"> {row['persona']}", ""]
        lines += ["| interest | share of likes | shown by |", "|---|---|---|"]
        lines += [f"| {i['label']} | {i['share']:.0%} | {_cell(i['evidence_titles'])} |" for i in row["interests"]]
        lines += [
            f"| new: {e['label']} | similarity {e['similarity']:.2f} | never touched |" for e in row["explorations"]
        ]
        lines.append("")
    return dg.MetadataValue.md("\n".join(lines) or "No user has a persona.")


def _cell(titles: list[str]) -> str:
    return "; ".join(titles).replace("|", "/")
