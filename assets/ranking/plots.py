"""Plots of the stage `ranking`, as PNG bytes."""

from typing import Any

import numpy as np

from assets.figures import png as _png


def _figure(width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    return figure, figure.subplots()


def roc(score_N: np.ndarray, label_N: np.ndarray) -> bytes:
    """ROC curve."""
    order = np.argsort(-score_N, kind="stable")
    label, score = label_N[order] > 0, score_N[order]
    # A point a group of equal scores: within one there is no order.
    last = np.concatenate([np.diff(score) != 0, [True]]) if len(score) else np.zeros(0, bool)
    hits, misses = np.cumsum(label)[last], np.cumsum(~label)[last]
    figure, axes = _figure(4.0, 3.8)
    axes.plot(
        [0, *(misses / max(misses[-1] if len(misses) else 1, 1))], [0, *(hits / max(hits[-1] if len(hits) else 1, 1))]
    )
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, test")
    return _png(figure)


def precision_recall(score_N: np.ndarray, label_N: np.ndarray) -> bytes:
    """Precision against recall, with the like rate as the line that chance draws."""
    from sklearn.metrics import precision_recall_curve

    figure, axes = _figure(4.0, 3.8)
    if len(label_N) and label_N.max() > 0:
        precision, recall, _ = precision_recall_curve(label_N > 0, score_N)
        axes.plot(recall, precision)
        axes.axhline(float(label_N.mean()), color="0.7", linewidth=0.8)
    axes.set(xlabel="recall", ylabel="precision", title="Precision and recall, test", xlim=(0, 1), ylim=(0, 1.02))
    return _png(figure)


def calibration(p_N: np.ndarray, label_N: np.ndarray) -> bytes:
    """Share of likes against predicted probability, in fifteen bins of equal mass."""
    from models.ranking.metrics import equal_mass_bins

    bins = equal_mass_bins(p_N)
    used = np.unique(bins)
    predicted = [p_N[bins == b].mean() for b in used]
    liked = [label_N[bins == b].mean() for b in used]
    figure, axes = _figure(4.0, 3.8)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.plot(predicted, liked, "o-", markersize=4)
    axes.set(
        xlabel="predicted probability of a like",
        ylabel="share liked",
        title="Calibration, test",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    return _png(figure)


def bars(rows: list[tuple[str, float, float, float]], label: str, title: str) -> bytes:
    """Values with intervals, one line a name: ``(name, value, low, high)``."""
    figure, axes = _figure(6.0, max(1.6, 0.36 * len(rows) + 1.0))
    places = np.arange(len(rows))[::-1]
    value = np.array([r[1] for r in rows])
    low, high = np.array([r[2] for r in rows]), np.array([r[3] for r in rows])
    axes.errorbar(value, places, xerr=np.maximum([value - low, high - value], 0), fmt="o", capsize=3)
    axes.set_yticks(places, [r[0] for r in rows])
    axes.set(xlabel=label, title=title)
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def history(records: list[dict[str, float]], best_epoch: int) -> bytes:
    """Loss and validation AUC by epoch."""
    figure, axes = _figure()
    epochs = [r["epoch"] for r in records]
    axes.plot(epochs, [r["loss"] for r in records], "o-", label="training loss")
    axes.set(xlabel="epoch", ylabel="loss", title="Training")
    other = axes.twinx()
    other.plot(epochs, [r["auc"] for r in records], "s--", color="tab:green", label="valid AUC")
    other.axvline(best_epoch, color="0.6", linewidth=0.8)
    other.set_ylabel("AUC")
    figure.legend(loc="outside lower center", ncols=2)
    return _png(figure)


def forest(
    panels: dict[str, list[tuple[str, float, float, float, bool]]], label: str, marked: dict[str, float]
) -> bytes:
    """Differences with intervals, a panel a slice; controls are grey.

    Args:
        panels: Lines ``(name, value, low, high, is_control)`` of each panel.
        label: What is drawn.
        marked: A value of each panel that is drawn as a dashed line, for reference.
    """
    from matplotlib.figure import Figure

    most = max((len(rows) for rows in panels.values()), default=1)
    width = min(len(panels), 3)
    height = -(-len(panels) // max(width, 1))
    figure = Figure(figsize=(4.6 * width, height * (0.26 * most + 1.2)), dpi=90, layout="constrained")
    for at, (title, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(height, width, at + 1)
        for place, (_, value, low, high, is_control) in zip(range(len(rows))[::-1], rows, strict=True):
            axes.errorbar(
                value,
                place,
                xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                fmt="o",
                markersize=4,
                capsize=3,
                color="0.6" if is_control else "tab:blue",
            )
        axes.set_yticks(range(len(rows))[::-1], [r[0] for r in rows], fontsize=7)
        axes.axvline(0, color="0.3", linewidth=0.8)
        if title in marked:
            axes.axvline(marked[title], color="tab:green", linewidth=0.8, linestyle="--")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(label, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    return _png(figure)
