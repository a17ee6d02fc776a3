"""Figures in the Dagster UI: Markdown that carries its image."""

import base64
import io
from typing import Any

import dagster as dg


def png(figure: Any, dpi: int = 80) -> bytes:
    """A matplotlib figure as PNG."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi, bbox_inches="tight")
    return sink.getvalue()


def image_markdown(image: bytes, alt: str, kind: str = "png") -> str:
    """An image as Markdown text.

    Args:
        image: The encoded image.
        alt: What it shows.
        kind: ``png`` or ``jpeg``.
    """
    return f"![{alt}](data:image/{kind};base64,{base64.b64encode(image).decode()})"


def inline(image: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG as metadata."""
    return dg.MetadataValue.md(image_markdown(image, alt))


def shown(figure: Any, alt: str) -> dg.MarkdownMetadataValue:
    """A matplotlib figure as metadata."""
    return inline(png(figure), alt)


def blank(width: float = 6.0, height: float = 2.6) -> tuple[Any, Any]:
    """A figure with one pair of axes, without a frame above and to the right.

    Args:
        width: Inches.
        height: Inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
