"""Plots of the stage `experiments`, as data URLs for Markdown."""

import base64
import io


def intervals(rows: list[tuple[str, float, float, float]], title: str) -> str:
    """Values with their intervals against zero, one line a row.

    Args:
        rows: Name, value, lower and upper end.
        title: What the numbers are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 0.45 * max(len(rows), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (_, value, low, high) in enumerate(rows):
        colour = "tab:green" if low > 0 else "tab:red" if high < 0 else "tab:gray"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(title)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=90)
    return f"![{title}](data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()})"
