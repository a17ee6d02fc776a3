"""What item images look like in the Dagster UI: a contact sheet, their sizes, and a table of what is quarantined."""

import io
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa

from assets.captions.charts import markdown_table
from assets.features.plots import histogram
from assets.figures import image_markdown

if TYPE_CHECKING:
    from ray_jobs.images.store import ImageStore

COLUMNS, ROWS, CELL, GAP = 6, 2, 96, 4
SAMPLES = 10


def contact_sheet(rows: pl.DataFrame, store: "ImageStore") -> dg.MetadataValue:
    """Thumbnails of images spread over the catalogue, as one inline picture; it says how many cannot be opened.

    Args:
        rows: Rows of `ITEM_IMAGES`.
        store: Where the canonical images are.
    """
    from PIL import Image

    from models.vision.canonical import decode

    usable = rows.filter(pl.col("pixel_digest").is_not_null()).unique("pixel_digest", maintain_order=True)
    most = COLUMNS * ROWS
    picked = usable.gather_every(max(usable.height // most, 1)).head(most)["pixel_digest"].to_list()
    num_rows = -(-len(picked) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP), num_rows * (CELL + GAP)), "white")
    broken = []
    for place, digest in enumerate(picked):
        try:
            image = Image.fromarray(decode(store.get(digest)))
        except (OSError, ValueError, SyntaxError):
            # Whoever captions it says so, too; a picture of pictures is no reason to fail.
            broken.append(digest)
            continue
        image.thumbnail((CELL, CELL))
        sheet.paste(image, (place % COLUMNS * (CELL + GAP), place // COLUMNS * (CELL + GAP)))
    sink = io.BytesIO()
    sheet.save(sink, format="JPEG", quality=80)
    shown = image_markdown(sink.getvalue(), "contact sheet", "jpeg")
    if broken:
        shown += (
            f"\n\n{len(broken)} of {len(picked)} cannot be opened in the store of images, e.g. `{broken[0]}.jpg`: "
            "delete them there and materialize again."
        )
    return dg.MetadataValue.md(shown)


def quarantine_markdown(rows: pl.DataFrame) -> str:
    """A Markdown table of quarantined images: the first few of every reason."""
    bad = rows.filter(pl.col("reason").is_not_null())
    shown = bad.group_by("reason", maintain_order=True).head(2).head(SAMPLES)
    rows_shown = shown.select("item_id", "image_uri", "reason", "detail").iter_rows()
    return markdown_table(["item", "image", "reason", "what to do"], [[_cell(v) for v in row] for row in rows_shown])


def _cell(text: str) -> str:
    """Text of a source as a cell: it may neither end the cell nor be a link."""
    plain = "".join(" " if c in "|<>[]`\n\r" or not c.isprintable() else c for c in text)
    return plain if len(plain) <= 160 else plain[:157] + "..."


def image_figures(data: pa.Table, store: "ImageStore") -> dict[str, Any]:
    """Metadata of a materialization that is to be looked at; what there is nothing to show of is left out."""
    rows = pl.from_arrow(data)
    assert isinstance(rows, pl.DataFrame)
    figures: dict[str, Any] = {}
    sizes = rows.filter(pl.col("width").is_not_null()).select(pl.max_horizontal("width", "height"))
    if sizes.height:
        figures["image_sizes"] = dg.MetadataValue.md(
            histogram(np.asarray(sizes.to_series()), "pixels of the longer side", "images")
        )
        figures["contact_sheet"] = contact_sheet(rows, store)
    if rows["reason"].null_count() < rows.height:
        figures["quarantine"] = dg.MetadataValue.md(quarantine_markdown(rows))
    return figures
