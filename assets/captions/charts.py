"""What captions look like in the Dagster UI: examples as a table, plots."""

import collections
import random
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.figures import blank, shown
from assets.resources import Tables
from models.language.captions import CLOSE, OPEN
from ray_jobs.tables.captions import CAPTION_STORE
from ray_jobs.tables.interactions import ITEMS

EXAMPLES, EVIDENCE_CHARS = 20, 240


def titles_of(tables: Tables) -> dict[str, str]:
    """Title of every item."""
    items = tables.read(ITEMS, ["item_id", "title"])
    return dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars and line ends within cells are replaced."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in row) + " |" for row in rows]
    return "\n".join(lines)


def examples_markdown(tables: Tables, captions: pa.Table) -> str:
    """Items with what the model was shown and what it said: drawn at random, so that good and bad show alike."""
    from ray_jobs.captions.plan import read_frame

    # The same items at every look, so that two prompts can be compared.
    picked = sorted(random.Random(0).sample(range(captions.num_rows), min(EXAMPLES, captions.num_rows)))
    rows = captions.take(pa.array(picked, pa.int64())).to_pylist()
    keys = [("content_key", "in", [row["content_key"] for row in rows])]
    kept = read_frame(tables.warehouse(), CAPTION_STORE, ["content_key", "evidence", "attempts"], keys)
    stored = {row["content_key"]: row for row in kept.to_dicts()}
    return markdown_table(
        ["item", "evidence", "caption", "subjects", "style, setting, mood", "text in image", "attempts"],
        [
            [
                row["item_id"],
                _without_fence(stored[row["content_key"]]["evidence"]),
                row["caption"],
                ", ".join(row["subjects"]),
                f"{row['style']}, {row['setting']}, {row['mood']}",
                row["text_in_image"],
                str(stored[row["content_key"]]["attempts"]),
            ]
            for row in rows
        ],
    )


def _without_fence(evidence: str) -> str:
    shown = "; ".join(line for line in evidence.splitlines() if line not in (OPEN, CLOSE))
    return shown if len(shown) <= EVIDENCE_CHARS else shown[: EVIDENCE_CHARS - 1] + "…"


def caption_figures(captions: pa.Table) -> dict[str, Any]:
    """Length of captions, and how often each style, setting and mood was chosen."""
    words = np.array([len(c.split()) for c in captions["caption"].to_pylist()], int)
    plots = {"caption_lengths": histogram(words, title="Length of captions", label="words")}
    for name in ("style", "setting", "mood"):
        counted = collections.Counter(captions[name].to_pylist()).most_common(16)
        plots[f"{name}s"] = bars(dict(counted), title=f"{name} of items".capitalize())
    return plots


def histogram(sizes: np.ndarray, *, title: str, label: str) -> dg.MetadataValue:
    """Histogram of whole numbers, one bar a number."""
    values, counts = np.unique(sizes, return_counts=True)
    figure, axis = blank()
    axis.bar(values, counts, color="#4a6fa5")
    axis.set(title=title, xlabel=label, ylabel="items")
    return shown(figure, title)


def bars(counts: dict[str, int], *, title: str) -> dg.MetadataValue:
    """One horizontal bar a name, largest on top."""
    figure, axis = blank()
    axis.barh(list(counts)[::-1], list(counts.values())[::-1], color="#4a6fa5")
    axis.set(title=title, xlabel="items")
    return shown(figure, title)
