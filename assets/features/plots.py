"""Plots for the Dagster UI."""

from collections.abc import Mapping

import numpy as np

from assets.figures import blank, image_markdown, png

BINS = 30


def histogram(values: np.ndarray, what: str, counted: str) -> str:
    """A histogram of positive counts on a logarithmic axis, as Markdown.

    Args:
        values: The counts.
        what: What a value is; label of the axis.
        counted: What is counted, e.g. ``items``.
    """
    figure, axes = blank(6, 2.8)
    top = max(float(values.max(initial=1)), 2.0)
    axes.hist(values, bins=np.geomspace(1, top, BINS), color="#4f6db8")
    axes.set(xscale="log", xlabel=what, ylabel=counted)
    return image_markdown(png(figure), f"{counted} by {what}")


def shares(values: Mapping[str, float], what: str) -> str:
    """Horizontal bars of shares between 0 and 1, as Markdown.

    Args:
        values: Share by name.
        what: What a share is; label of the axis.
    """
    figure, axes = blank(6, 2.8)
    names = list(values)[::-1]
    bars = axes.barh(names, [values[n] for n in names], color="#4f6db8")
    axes.bar_label(bars, labels=[f" {values[n]:.1%}" for n in names], fontsize=8)
    axes.set(xlim=(0, 1.15), xlabel=what)
    return image_markdown(png(figure), what)
