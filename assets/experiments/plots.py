"""Plots of the stage `experiments`, as data URLs for Markdown."""

from assets.figures import image_markdown, png


def intervals(rows: list[tuple[str, float, float, float]], title: str) -> str:
    """Values with their intervals against zero, one line a row.

    Args:
        rows: Name, value, lower and upper end.
        title: What the numbers are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 0.45 * max(len(rows), 1)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, value, low, high) in enumerate(rows):
        colour = "tab:green" if low > 0 else "tab:red" if high < 0 else "tab:gray"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(title)
    return image_markdown(png(figure), title)
