"""How the plots of a report look: readable in grey, labelled where they are."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
    }
)
# Dark to light, with a marker and a dash of its own, so that a grey print tells them apart.
STYLES: dict[str, tuple[str, str, Any]] = {
    "none": ("#111111", "o", "solid"),
    "se": ("#b3541e", "s", (0, (6, 2))),
    "eca": ("#1f6fb4", "D", (0, (1, 1))),
    "cbam": ("#7a9a01", "^", (0, (4, 1, 1, 1))),
}
OTHER = ("#888888", "v", (0, (2, 2)))
LABELS = {"none": "plain", "se": "SE", "eca": "ECA", "cbam": "CBAM", "eca-ns": "ECA-NS"}


def style(attention: str) -> tuple[str, str, Any]:
    """Colour, marker and dash of an attention kind."""
    return STYLES.get(attention, OTHER)


def label(attention: str) -> str:
    """How people write it."""
    return LABELS.get(attention, attention.upper().replace("-VAR", "-Var"))


def png(figure: Figure, facts: dict[str, str]) -> bytes:
    """The figure as a PNG, with `facts` as its texts."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata=facts)
    return out.getvalue()


def grid(count: int, height: float = 3.3) -> tuple[Figure, list[Any]]:
    """So many panels in two columns, each `height` inches high."""
    columns = min(2, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(5.6 * columns, height * lines))
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(count)]
    return figure, axes


def plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def end_labels(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Labels at the right ends of lines, moved apart where they would overlap; each is (x, y, text, colour)."""
    axis.figure.canvas.draw()
    low, high = axis.get_ylim()
    place = axis.transData
    at = sorted((place.transform((x, min(max(y, low), high)))[1], x, text, colour) for x, y, text, colour in ends)
    least, previous = 13 * axis.figure.dpi / 72, float("-inf")
    right = max(x for x, *_ in ends)
    for pixel, _, text, colour in at:
        previous = max(pixel, previous + least)
        y = place.inverted().transform((0, previous))[1]
        axis.annotate(
            text,
            (right, y),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )
