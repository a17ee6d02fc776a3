"""What captions and their tokens look like in the Dagster UI: examples as a table, one plot."""

import base64
import io

import dagster as dg
import numpy as np
import pyarrow as pa

EXAMPLES = 10


def examples_markdown(captions: pa.Table, titles: dict[str, str], tokens: dict[str, list[str]] | None = None) -> str:
    """A Markdown table of items spread over the catalogue: title, caption, mood, and tags or tokens."""
    said = captions.to_pylist()
    picked = said[:: max(len(said) // EXAMPLES, 1)][:EXAMPLES]
    lines = [f"| title | caption | mood | {'tokens' if tokens else 'tags'} |", "|---|---|---|---|"]
    for row in picked:
        words = tokens.get(row["item_id"], []) if tokens else row["tags"]
        cells = [titles.get(row["item_id"], row["item_id"]), row["caption"], row["mood"], ", ".join(words)]
        lines.append("| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines)


def histogram(sizes: np.ndarray, *, title: str, label: str) -> dg.MetadataValue:
    """Histogram of whole numbers, one bar a number."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    values, counts = np.unique(sizes, return_counts=True)
    figure, axis = plt.subplots(figsize=(6, 2.6))
    axis.bar(values, counts, color="#4a6fa5")
    axis.set(title=title, xlabel=label, ylabel="items")
    axis.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=72, bbox_inches="tight")
    plt.close(figure)
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()})")
