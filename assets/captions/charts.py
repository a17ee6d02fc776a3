"""What captions look like in the Dagster UI: examples as a table, plots."""

import collections
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.figures import blank, shown
from assets.resources import Tables
from ray_jobs.tables.interactions import ITEMS

EXAMPLES = 10


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
    """Items spread over the catalogue with what the model said of them."""
    titles, said = titles_of(tables), captions.to_pylist()
    picked = said[:: max(len(said) // EXAMPLES, 1)][:EXAMPLES]
    return markdown_table(
        ["title", "caption", "subjects", "style, setting, mood", "text in image"],
        [
            [
                titles.get(row["item_id"], row["item_id"]),
                row["caption"],
                ", ".join(row["subjects"]),
                f"{row['style']}, {row['setting']}, {row['mood']}",
                row["text_in_image"],
            ]
            for row in picked
        ],
    )


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
