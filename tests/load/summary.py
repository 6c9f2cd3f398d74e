"""From cells to what a person asks: latency by load, throughput at an objective, stages, the tax of attention."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from eca_build.networks.attention import KINDS

from tests.load.intervals import Estimate, mean, over_rounds, quantile, ratio
from tests.load.matrix import ALONE, BUSY, DEMO, DEMO_WEIGHTS, ENGINE
from tests.load.measure import Cell
from tests.load.paper import published_cost

STAGES = ("decode", "queue", "infer", "rest")


@dataclass(frozen=True)
class Row:
    """One variant at one level. Latencies in milliseconds; `rest_ms` and the others are means of a request's stages."""

    backbone: str
    variant: str
    attention: str
    precision: str
    graph: str
    level: str
    offered_per_s: float | None
    answers: int
    failures: int
    per_s: Estimate
    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    processor_ms: Estimate
    late_p99_ms: float
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class Tax:
    """What a variant costs against its plain network, as shares.

    0.1 is a tenth less throughput, a tenth more latency, a tenth more processor time for an image.
    """

    backbone: str
    variant: str
    attention: str
    precision: str
    graph: str
    level: str
    throughput: Estimate
    latency_p50: Estimate
    processor: Estimate
    published: float | None


Figure = TypeVar("Figure", Row, Tax)


def row(cell: Cell) -> Row:
    """The figures of one cell, with intervals over its rounds."""
    values = cell.latencies_ms
    means = [stages for stages in cell.stages_ms if stages]
    stages = {name: float(np.mean([one[name] for one in means])) for name in (means[0] if means else {})}
    total = float(np.mean(np.concatenate(values))) if any(values) else 0.0
    if stages:
        known = {name: stages[name] for name in ("decode", "queue", "infer")}
        stages = known | {"rest": max(0.0, total - sum(known.values()))}
    p50, p95, p99 = (quantile(values, q) for q in (50, 95, 99))
    return Row(
        backbone=cell.backbone,
        variant=cell.variant,
        attention=cell.attention,
        precision=cell.precision,
        graph=cell.graph,
        level=cell.level,
        offered_per_s=cell.offered_per_s,
        answers=sum(map(len, values)),
        failures=sum(cell.failures.values()),
        per_s=over_rounds([[one] for one in cell.per_s], mean),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        processor_ms=over_rounds([[one] for one in cell.processor_ms], mean),
        late_p99_ms=max(cell.late_p99_ms, default=0.0),
        stages_ms=stages,
    )


def main_ones(ones: Sequence[Figure]) -> list[Figure]:
    """Those that plots show: fp32 in the plain graph, or the precision and graph of the first where there is none."""
    precisions = [one.precision for one in ones]
    graphs = [one.graph for one in ones if one.attention != "none"]
    precision = "fp32" if "fp32" in precisions or not precisions else precisions[0]
    graph = "plain" if "plain" in graphs or not graphs else graphs[0]
    return [one for one in ones if one.precision == precision and (one.graph == graph or one.attention == "none")]


def title(ones: Sequence[Row] | Sequence[Tax]) -> str:
    """What to add to a plot's title, of main_ones: `, int8`, `, hoisted graph`; nothing of fp32 in the plain graph."""
    precisions = {one.precision for one in ones} - {"fp32"}
    graphs = {f"{one.graph} graph" for one in ones} - {"plain graph"}
    return "".join(f", {one}" for one in (*precisions, *graphs))


def failed(cells: Iterable[Cell]) -> Counter[str]:
    """How many requests failed, by their code."""
    found = Counter[str]()
    for cell in cells:
        found.update(cell.failures)
    return found


def taxes(cells: Sequence[Cell]) -> list[Tax]:
    """Each variant with attention against the plain one of its backbone and precision, in each round side by side."""
    by_key = {(cell.variant, cell.level): cell for cell in cells}
    found = []
    for cell in cells:
        if cell.attention == "none" or cell.level not in (ALONE.name, BUSY.name, ENGINE.name):
            continue
        plain = f"{cell.backbone}-plain" + ("" if cell.precision == "fp32" else f"-{cell.precision}")
        base = by_key.get((plain, cell.level))
        if base is None:
            continue
        ours, plains = ([float(np.median(one)) if one else 0.0 for one in x.latencies_ms] for x in (cell, base))
        throughput, latency = ratio(cell.per_s, base.per_s), ratio(ours, plains)
        processor = ratio(cell.processor_ms, base.processor_ms)
        found.append(
            Tax(
                backbone=cell.backbone,
                variant=cell.variant,
                attention=cell.attention,
                precision=cell.precision,
                graph=cell.graph,
                level=cell.level,
                throughput=Estimate(1 - throughput.value, 1 - throughput.high, 1 - throughput.low),
                latency_p50=Estimate(latency.value - 1, latency.low - 1, latency.high - 1),
                processor=Estimate(processor.value - 1, processor.low - 1, processor.high - 1),
                published=published_cost(cell.backbone, cell.attention),
            )
        )
    return found


def objective_ms(rows: Sequence[Row], backbone: str) -> float:
    """The p99 that throughput is compared at: five times the lone p50 of the plain network, as 1, 2 or 5 times 10^n."""
    lone = [
        one.p50_ms.value
        for one in main_ones(rows)
        if one.backbone == backbone and one.level == ALONE.name and one.attention == "none"
    ]
    wanted = 5 * lone[0] if lone else 100.0
    steps = [m * 10.0**e for e in range(0, 5) for m in (1, 2, 5)]
    return next((step for step in steps if step >= wanted), steps[-1])


def at_objective(rows: Sequence[Row], variant: str, objective: float) -> tuple[float, bool]:
    """Arrivals a second that keep p99 within `objective` ms, between the loads tried; True where even the largest did.

    0 where not even the smallest did.
    """
    points = [(one.offered_per_s or 0.0, one.p99_ms.value) for one in curve(rows, variant)]
    best = 0.0
    for index, (load, p99) in enumerate(points):
        if not p99 <= objective:
            if best and np.isfinite(p99):
                before_load, before_p99 = points[index - 1]
                share = (np.log(objective) - np.log(before_p99)) / (np.log(p99) - np.log(before_p99))
                return float(before_load + share * (load - before_load)), False
            return best, False
        best = load
    return best, bool(points)


def _poisson(one: Row) -> bool:
    return one.level.startswith("http poisson") and one.offered_per_s is not None


def curve(rows: Sequence[Row], variant: str) -> list[Row]:
    """The variant's rows of Poisson arrivals over HTTP, by load."""
    return sorted((r for r in rows if r.variant == variant and _poisson(r)), key=lambda r: r.offered_per_s or 0)


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """By backbone as measured, attention as the paper has it, then precision, graph and level."""
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    kinds: list[str] = [
        "none",
        "se",
        *(kind for kind in KINDS if kind not in ("none", "se", "eca", "cbam")),
        "eca",
        "cbam",
    ]
    return sorted(
        cells, key=lambda c: (backbones.index(c.backbone), kinds.index(c.attention), c.precision, c.graph, c.level)
    )


def accuracies() -> dict[tuple[str, str], float]:
    """Accuracy on CIFAR-10's test images by (backbone, attention), of the demo networks that were trained."""
    found = {}
    for backbone, stem in DEMO_WEIGHTS.items():
        for path in Path(DEMO).glob(f"{stem}-*.json"):
            figures = json.loads(path.read_text())
            found[backbone, str(figures["attention"])] = float(figures["test_accuracy"])
    return found
