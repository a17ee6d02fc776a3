"""The plot of a training."""

import dagster as dg

from assets.figures import shown


def training_curve(history: list[dict[str, float]], best_epoch: int) -> dg.MarkdownMetadataValue:
    """Loss on train and AUC on valid, by epoch, as an image in Markdown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    losses, aucs = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    losses.plot(epochs, [record["loss"] for record in history], marker="o", label="total")
    losses.plot(epochs, [record["click"] for record in history], marker="o", label="click")
    losses.set(title="loss on train", xlabel="epoch")
    losses.legend()
    aucs.plot(epochs, [record["auc"] for record in history], marker="o")
    aucs.axvline(best_epoch, linestyle=":", color="grey")
    aucs.set(title="AUC on valid", xlabel="epoch")
    for axis in (losses, aucs):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return shown(figure, "training curve")
