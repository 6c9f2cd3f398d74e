"""The plots of a report, with units on every axis."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from tests.load.drawing import end_labels, grid, label, plain_log, style
from tests.load.intervals import Estimate
from tests.load.matrix import ALONE, BUSY, ENGINE
from tests.load.summary import STAGES, Row, Tax, accuracies, at_objective, curve, main_ones, objective_ms, title

FILLS = {"decode": ("#333333", ""), "queue": ("#bbbbbb", "///"), "infer": ("#6fa8dc", ""), "rest": ("#f2f2f2", "...")}


def backbones(rows: Sequence[Row]) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(one.backbone for one in rows))


def _variants(rows: Sequence[Row], backbone: str) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.variant, one.attention) for one in rows if one.backbone == backbone))


def latency_against_load(rows: Sequence[Row]) -> Figure:
    """p50 (thin) and p99 (thick) by arrivals a second, one panel a backbone."""
    rows = main_ones(rows)
    names = [name for name in backbones(rows) if any(curve(rows, v) for v, _ in _variants(rows, name))]
    figure, axes = grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        ends = []
        for variant, attention in _variants(rows, name):
            points = [one for one in curve(rows, variant) if one.answers]
            if not points:
                continue
            colour, marker, dash = style(attention)
            loads = [one.offered_per_s or 0.0 for one in points]
            p99 = [one.p99_ms.value for one in points]
            axis.plot(loads, p99, color=colour, marker=marker, linestyle=dash, linewidth=1.8)
            axis.plot(loads, [one.p50_ms.value for one in points], color=colour, linestyle=dash, linewidth=0.8)
            ends.append((loads[-1], p99[-1], label(attention), colour))
        objective = objective_ms(rows, name)
        axis.axhline(objective, color="#999999", linewidth=0.8)
        axis.annotate(
            f"objective {objective:g} ms", (0, objective), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=8, color="#666666",
        )  # fmt: skip
        axis.set_yscale("log")
        axis.set_xlim(left=0)
        axis.set_title(name)
        axis.set_xlabel("arrivals (images/s, Poisson)")
        axis.set_ylabel("latency (ms)")
        plain_log(axis.yaxis)
        axis.grid(axis="y", color="#eeeeee")
        if ends:
            axis.margins(x=0.02)
            end_labels(axis, ends)
    figure.suptitle(
        f"Latency against load{title(rows)}: p99 thick with marks, p50 thin", x=0.01, ha="left", fontweight="bold"
    )
    return figure


def tail(rows: Sequence[Row]) -> Figure:
    """p50, p95 and p99 of every variant at the middle load."""
    rows = main_ones(rows)
    chosen = []
    for name in backbones(rows):
        for variant, attention in _variants(rows, name):
            points = [one for one in curve(rows, variant) if one.answers]
            if points:
                chosen.append((name, attention, points[len(points) // 2]))
    figure = Figure(figsize=(9, 1.2 + 0.33 * len(chosen)))
    axis = figure.add_subplot()
    for index, (_, attention, one) in enumerate(chosen):
        y, colour = -index, style(attention)[0]
        marks = (("p50", one.p50_ms, "|"), ("p95", one.p95_ms, "o"), ("p99", one.p99_ms, "D"))
        axis.plot([one.p50_ms.value, one.p99_ms.value], [y, y], color=colour, linewidth=1.2)
        for _, estimate, marker in marks:
            axis.plot(estimate.value, y, marker=marker, color=colour, markersize=7 if marker != "|" else 11)
        axis.annotate(
            f"{one.p50_ms.value:.0f} / {one.p95_ms.value:.0f} / {one.p99_ms.value:.0f} ms",
            (one.p99_ms.value, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axis.set_yticks([-i for i in range(len(chosen))], [f"{name}  {label(attention)}" for name, attention, _ in chosen])
    axis.set_xscale("log")
    plain_log(axis.xaxis)
    axis.set_ylim(0.7 - len(chosen), 0.6)
    axis.set_xlim(right=axis.get_xlim()[1] * 2.2)
    axis.set_xlabel("latency (ms): bar p50, circle p95, diamond p99")
    axis.grid(axis="x", color="#eeeeee")
    share = chosen[0][2].level.removeprefix("http poisson ") if chosen else ""
    axis.set_title(f"Tail latency, Poisson arrivals at {share} of the plain network's capacity{title(rows)}")
    return figure


def throughput(rows: Sequence[Row]) -> Figure:
    """Images a second with p99 within the objective, one panel a backbone."""
    rows = main_ones(rows)
    names = backbones(rows)
    figure, axes = grid(len(names), 2.4)
    for axis, name in zip(axes, names, strict=True):
        objective = objective_ms(rows, name)
        for index, (variant, attention) in enumerate(_variants(rows, name)):
            value, beyond = at_objective(rows, variant, objective)
            axis.barh(-index, value, color=style(attention)[0], height=0.62)
            number = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
            text = f"{'at least ' if beyond else ''}{number}" if value else "none of the loads"
            axis.annotate(text, (value, -index), xytext=(5, 0), textcoords="offset points", va="center")
        count = len(_variants(rows, name))
        axis.set_yticks([-i for i in range(count)], [label(a) for _, a in _variants(rows, name)])
        axis.set_xlim(0, axis.get_xlim()[1] * 1.3)
        axis.set_title(f"{name}, p99 within {objective:g} ms")
        axis.set_xlabel("images/s")
    figure.suptitle(f"Throughput at a latency objective{title(rows)}", x=0.01, ha="left", fontweight="bold")
    return figure


def stages(rows: Sequence[Row]) -> Figure:
    """Where a request's time goes, alone and with eight callers: of plain and ECA, or of what there is."""
    rows = [one for one in main_ones(rows) if one.stages_ms]
    rows = [one for one in rows if one.attention in ("none", "eca")] or rows
    names = backbones(rows)
    figure, axes = grid(len(names), 2.5)
    for axis, name in zip(axes, names, strict=True):
        shown = [one for one in rows if one.backbone == name and one.level in (ALONE.name, BUSY.name)]
        shown.sort(key=lambda one: (one.level != ALONE.name, one.attention != "none"))
        for index, one in enumerate(shown):
            left = 0.0
            for stage in STAGES:
                colour, hatch = FILLS[stage]
                width = one.stages_ms[stage]
                axis.barh(-index, width, left=left, color=colour, hatch=hatch, edgecolor="#444444", linewidth=0.5)
                left += width
            axis.annotate(f"{left:.1f} ms", (left, -index), xytext=(5, 0), textcoords="offset points", va="center")
        ticks = [f"{label(one.attention)}, {'1 caller' if one.level == ALONE.name else '8 callers'}" for one in shown]
        axis.set_yticks([-i for i in range(len(shown))], ticks)
        axis.set_xlim(right=axis.get_xlim()[1] * 1.2)
        axis.set_title(name)
        axis.set_xlabel("mean time of a request (ms)")
    handles = [
        matplotlib.patches.Patch(facecolor=FILLS[s][0], hatch=FILLS[s][1], edgecolor="#444444", label=s) for s in STAGES
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(STAGES), frameon=False)
    figure.suptitle(f"Where the time goes{title(rows)}", x=0.01, ha="left", fontweight="bold")
    return figure


def tax(found: Sequence[Tax]) -> Figure:
    """Lost throughput and added processor time against the plain network, with intervals, beside the paper's."""
    plain = main_ones(found)
    keys = list(dict.fromkeys((one.backbone, one.attention) for one in plain))
    figure = Figure(figsize=(9, 1.7 + 0.6 * len(keys)))
    axis = figure.add_subplot()
    marks = (
        ("o", 0.2, "throughput lost, 8 callers over HTTP", BUSY.name, "throughput"),
        ("s", 0.0, "throughput lost, Triton directly, 1 caller", ENGINE.name, "throughput"),
        ("^", -0.2, "processor time added for an image", BUSY.name, "processor"),
    )
    by_level = {(one.backbone, one.attention, one.level): one for one in plain}
    for index, key in enumerate(keys):
        colour = style(key[1])[0]
        for marker, shift, _, level, figure_name in marks:
            one = by_level.get((*key, level))
            if one is None:
                continue
            value: Estimate = getattr(one, figure_name)
            y = -index + shift
            axis.plot([100 * value.low, 100 * value.high], [y, y], color=colour, linewidth=1.4)
            axis.plot(100 * value.value, y, marker=marker, color=colour, markersize=6)
        published = next((one.published for one in plain if (one.backbone, one.attention) == key), None)
        if published is not None:
            axis.plot(100 * published, -index, marker="D", markersize=11, color="black", fillstyle="none")
    axis.axvline(0, color="#999999", linewidth=0.8)
    axis.set_yticks([-i for i in range(len(keys))], [f"{backbone}  {label(a)}" for backbone, a in keys])
    axis.set_ylim(0.4 - len(keys), 0.6)
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -100), min(high, 100))  # the interval of two rounds may be any
    axis.set_xlabel("against the plain network (%), with 95 % interval")
    axis.grid(axis="x", color="#eeeeee")
    line = matplotlib.lines.Line2D
    handles = [line([], [], marker=m, linestyle="", color="#333333", label=text) for m, _, text, *_ in marks]
    paper = "throughput lost in the paper, on its GPU"
    handles.append(line([], [], marker="D", linestyle="", fillstyle="none", color="black", label=paper))
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False)
    axis.set_title(f"The tax of attention{title(plain)}")
    return figure


def accuracy(rows: Sequence[Row]) -> Figure | None:
    """Accuracy against a lone request's latency, for trained demo networks; None where none was measured."""
    known = accuracies()
    points = [
        (one, known[one.backbone, one.attention])
        for one in rows
        if one.level == ALONE.name and one.precision == "fp32" and (one.backbone, one.attention) in known
    ]
    if not points:
        return None
    figure = Figure(figsize=(6.5, 4))
    axis = figure.add_subplot()
    points.sort(key=lambda point: -point[1])
    for index, (one, share) in enumerate(points):
        colour, marker, _ = style(one.attention)
        middle = one.p50_ms
        axis.plot([middle.low, middle.high], [100 * share] * 2, color=colour, linewidth=1.2)
        axis.plot(middle.value, 100 * share, color=colour, marker=marker, markersize=8)
        extra = f" {one.graph}" if one.graph != "plain" else ""
        axis.annotate(
            f"{one.backbone.removesuffix('-demo')} {label(one.attention)}{extra}",
            (middle.value, 100 * share), xytext=(6, -16 if index % 2 else 7), textcoords="offset points",
        )  # fmt: skip
    axis.margins(x=0.35, y=0.35)
    axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    axis.set_xlabel("p50 of one caller over HTTP (ms)")
    axis.set_ylabel("accuracy on CIFAR-10's test images (%)")
    axis.set_title("Accuracy against latency, demo networks")
    axis.grid(color="#eeeeee")
    return figure
