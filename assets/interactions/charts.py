"""Plots of the stage, as Markdown images that the Dagster UI shows."""

import polars as pl

from assets.figures import image_markdown, png


def events_by_day(days: pl.DataFrame) -> str:
    """A plot of the number of events on each day.

    Args:
        days: ``day`` and ``num_rows``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5))
    axes = figure.subplots()
    axes.bar(days["day"].str.to_date().to_list(), days["num_rows"].to_list(), width=1.0)
    axes.set_ylabel("events")
    axes.set_title("Events by UTC day")
    axes.tick_params(axis="x", rotation=30)
    return image_markdown(png(figure), "events by day")


def refusals_by_reason(reasons: pl.DataFrame) -> str:
    """A plot of the number of refused rows for each reason.

    Args:
        reasons: ``reason`` and ``len``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.3 * max(len(reasons), 1)))
    axes = figure.subplots()
    axes.barh(reasons["reason"].to_list(), reasons["len"].to_list())
    axes.set_xlabel("rows")
    axes.set_title("Rows in quarantine by reason")
    return image_markdown(png(figure), "rows in quarantine by reason")


def examples_by_split(sizes: dict[str, int]) -> str:
    """A plot of the number of examples in each part of each split.

    Args:
        sizes: Examples by ``<split>_<part>``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5))
    axes = figure.subplots()
    axes.bar(list(sizes), list(sizes.values()))
    axes.set_ylabel("examples")
    axes.set_title("Examples by split")
    axes.tick_params(axis="x", rotation=20)
    return image_markdown(png(figure), "examples by split")
