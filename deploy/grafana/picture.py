"""One dashboard as a picture: panels where Grafana would place them, lines for what Prometheus answered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Series = tuple[str, list[tuple[float, str]]]  # legend, [(time, value), ...]
CELL_INCH = (0.72, 0.36)  # of Grafana's grid of 24 columns
BACKGROUND, PANEL, EDGE, TEXT, FAINT = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e8e8e"
LINES = (
    *("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#37872d", "#8ab8ff", "#ffa6b0", "#c4a000"),
    *("#56a64b", "#3274d9", "#e0b400", "#a352cc", "#fa6400"),
)
CAPTION = (
    "Rendered by deploy/grafana/render.py: the dashboard's own queries, answered by a Prometheus that scraped "
    "a real run. Not a screenshot of Grafana."
)


def amount(value: float, unit: str) -> str:
    """A value as Grafana shows it in that unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %" if value < 10 else f"{100 * value:.0f} %"
    scale, suffix = {"s": (1.0, " s"), "µs": (1e-6, " s"), "reqps": (1.0, " req/s"), "watt": (1.0, " W")}.get(
        unit, (1.0, "")
    )
    value *= scale
    if suffix == " s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms" if abs(value) >= 1e-3 else f"{1e6 * value:.3g} µs"
    return f"{value:.4g}{suffix}"


def draw(
    dashboard: dict[str, Any], drawn: list[list[Series]], span: tuple[float, float], story: str, file: Path
) -> None:
    """Writes the picture; `drawn` has the series of each panel, in the panels' order, `span` is the time shown."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * CELL_INCH[0], rows * CELL_INCH[1] + 1.1
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    top = 0.7
    figure.text(0.2 / width, 1 - 0.32 / height, dashboard["title"], color=TEXT, size=13, weight="bold", va="center")
    figure.text(0.2 / width, 1 - 0.55 / height, f"The run: {story}.", color=FAINT, size=8.5, va="center")
    figure.text(0.2 / width, 0.18 / height, CAPTION, color=FAINT, size=8, va="center")
    for panel, series in zip(panels, drawn, strict=True):
        grid = panel["gridPos"]
        box = [
            (grid["x"] * CELL_INCH[0] + 0.06) / width,
            1 - (top + (grid["y"] + grid["h"]) * CELL_INCH[1] - 0.06) / height,
            (grid["w"] * CELL_INCH[0] - 0.12) / width,
            (grid["h"] * CELL_INCH[1] - 0.12) / height,
        ]
        frame = figure.add_axes((box[0], box[1], box[2], box[3]), facecolor=PANEL, xticks=[], yticks=[])
        for spine in frame.spines.values():
            spine.set_color(EDGE)
        inches = (grid["w"] * CELL_INCH[0] - 0.12, grid["h"] * CELL_INCH[1] - 0.12)
        frame.text(
            0.1 / inches[0], 1 - 0.17 / inches[1], panel["title"], color=TEXT, size=8.5, weight="bold", va="center"
        )
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if not series:
            text = "No data: there was no GPU" if "nv_gpu_" in str(panel["targets"]) else "No data"
            frame.text(0.5, 0.45, text, color=FAINT, size=10, ha="center", va="center")
        elif panel["type"] == "stat":
            value = float(series[0][1][-1][1])
            frame.text(0.5, 0.4, amount(value, unit), color=LINES[0], size=18, ha="center", va="center")
        else:
            legends = 1 if len(series) == 3 else (len(series) + 1) // 2
            below = 0.42 + 0.15 * min(legends, 5)
            axes = figure.add_axes(
                (
                    box[0] + 0.62 / width,
                    box[1] + below / height,
                    box[2] - 0.75 / width,
                    box[3] - (below + 0.38) / height,
                ),
                facecolor=PANEL,
            )
            _lines(axes, series, unit, span)
            axes.legend(
                loc="upper left",
                bbox_to_anchor=(box[0] + 0.12 / width, box[1] + (below - 0.22) / height),
                bbox_transform=figure.transFigure,
                ncols=3 if len(series) == 3 else 2,
                frameon=False,
                labelcolor=TEXT,
                fontsize=6.5,
                handlelength=1.2,
                columnspacing=1.2,
                borderaxespad=0,
            )
    figure.savefig(file, dpi=100, facecolor=BACKGROUND)


def _lines(axes: Axes, series: list[Series], unit: str, span: tuple[float, float]) -> None:
    begin, end = span
    for number, (name, values) in enumerate(series):
        minutes = [(when - begin) / 60 for when, _ in values]
        heights = [float(value) for _, value in values]
        points = [(at, one) if math.isfinite(one) else (at, math.nan) for at, one in zip(minutes, heights, strict=True)]
        axes.plot(
            [at for at, _ in points],
            [one for _, one in points],
            color=LINES[number % len(LINES)],
            linewidth=1.1,
            label=name or "value",
        )
    axes.set_xlim(0, (end - begin) / 60)
    highest = max(
        (float(value) for _, values in series for _, value in values if math.isfinite(float(value))), default=0
    )
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(colors=FAINT, labelsize=6.5, length=0, pad=3)
    axes.grid(color=EDGE, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
