"""Plots for the Dagster UI."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 30


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _markdown(figure: Any, what: str) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=90)
    return f"![{what}](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"


def histogram(values: np.ndarray, what: str, counted: str) -> str:
    """A histogram of positive counts on a logarithmic axis, as Markdown.

    Args:
        values: The counts.
        what: What a value is; label of the axis.
        counted: What is counted, e.g. ``items``.
    """
    figure, axes = _figure()
    top = max(float(values.max(initial=1)), 2.0)
    axes.hist(values, bins=np.geomspace(1, top, BINS), color="#4f6db8")
    axes.set(xscale="log", xlabel=what, ylabel=counted)
    return _markdown(figure, f"{counted} by {what}")


def shares(values: Mapping[str, float], what: str) -> str:
    """Horizontal bars of shares between 0 and 1, as Markdown.

    Args:
        values: Share by name.
        what: What a share is; label of the axis.
    """
    figure, axes = _figure()
    names = list(values)[::-1]
    bars = axes.barh(names, [values[n] for n in names], color="#4f6db8")
    axes.bar_label(bars, labels=[f" {values[n]:.1%}" for n in names], fontsize=8)
    axes.set(xlim=(0, 1.15), xlabel=what)
    return _markdown(figure, what)
