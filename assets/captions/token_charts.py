"""What caption tokens look like in the Dagster UI: their fields and examples as tables, their health as plots."""

from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa

from assets.captions.charts import EXAMPLES, histogram, markdown_table, titles_of
from assets.figures import blank, shown
from assets.resources import Tables

MOST_FREQUENT = 8


def fields_markdown(vocabulary: pa.Table, sets: pa.Table) -> str:
    """Each field with its terms, its share of all tokens, and its most frequent tokens."""
    terms = pl.DataFrame(vocabulary).filter("kept")
    used = pl.DataFrame(sets.select(["tokens"])).explode("tokens", empty_as_null=False)["tokens"]
    counted = used.value_counts(name="count").rename({"tokens": "term"}).join(terms.select("term", "field"), on="term")
    rows = []
    for field in terms["field"].unique().sort():
        own = counted.filter(pl.col("field") == field).sort("count", "term", descending=[True, False])
        frequent = ", ".join(term.split(":", 1)[1] for term in own["term"].head(MOST_FREQUENT))
        size = terms.filter(pl.col("field") == field).height
        rows.append([field, f"{size:,}", f"{own['count'].sum() / max(len(used), 1):.1%}", frequent])
    return markdown_table(["field", "terms", "share of tokens", "most frequent tokens"], rows)


def tokens_markdown(tables: Tables, captions: pa.Table, sets: pa.Table) -> str:
    """Items spread over the catalogue with caption and tokens, the most telling first."""
    titles = titles_of(tables)
    said = dict(zip(captions["item_id"].to_pylist(), captions["caption"].to_pylist(), strict=True))
    picked = sets.take(list(range(0, sets.num_rows, max(sets.num_rows // EXAMPLES, 1)))[:EXAMPLES])
    rows = []
    for row in picked.select(["item_id", "tokens", "weights"]).to_pylist():
        order = np.argsort(-np.array(row["weights"]), kind="stable")
        telling = ", ".join(row["tokens"][i] for i in order)
        rows.append([titles.get(row["item_id"], row["item_id"]), said[row["item_id"]], telling])
    return markdown_table(["title", "caption", "tokens"], rows)


def token_figures(vocabulary: pa.Table, sets: pa.Table) -> dict[str, Any]:
    """Tokens of an item, and in how many items the terms of each field are, by rank."""
    sizes = sets["token_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return {
        "tokens_per_item": histogram(sizes, title="Tokens of an item", label="tokens"),
        "document_frequencies": _ranks(vocabulary),
    }


def _ranks(vocabulary: pa.Table) -> dg.MetadataValue:
    figure, axes = blank(6, 2.8)
    terms = pl.DataFrame(vocabulary).with_columns(pl.col("items").cast(pl.Float64))
    for field in terms["field"].unique().sort():
        items = terms.filter(pl.col("field") == field)["items"].sort(descending=True).to_numpy()
        axes.plot(np.arange(1, len(items) + 1), items, label=field, marker=".", markersize=3, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="rank of the term", ylabel="items of the training period")
    axes.legend(fontsize=7, frameon=False)
    return shown(figure, "Items of each term by rank")
