"""The tables of a report, in HTML and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eca_build import cost
from eca_build.networks import Network, NetworkSpec, create, site_channels, with_formula
from torch import device

from tests.load.compare import Change
from tests.load.drawing import label
from tests.load.intervals import Estimate
from tests.load.paper import TABLE_2, TABLE_3, flops_unit
from tests.load.summary import STAGES, Row, Tax, at_objective, curve, objective_ms


@dataclass(frozen=True)
class Table:
    """A table by its file's name: what stands above it, the columns, the rows as people read them."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def changes(changed: Sequence[Change]) -> Table:
    """A comparison's changes, the worst first."""
    order = {"worse": 0, "better": 1, "unknown": 2, "same": 3}
    rows = [
        (c.variant, c.level, c.figure, "" if math.isnan(c.change.value) else c.change.text(2), c.verdict)
        for c in sorted(changed, key=lambda c: (order[c.verdict], c.variant, c.level))
    ]
    return Table("changes", "New by old, with 95 % interval", ("model", "load", "figure", "change", "verdict"), rows)


def tax(found: Sequence[Tax]) -> Table:
    """Costs beside the paper's."""
    rows = [
        (
            t.variant, t.level, t.throughput.text(1, 100), t.latency_p50.text(1, 100), t.processor.text(1, 100),
            "" if t.published is None else f"{100 * t.published:.1f}",
        )
        for t in found
    ]  # fmt: skip
    columns = (
        "model",
        "load",
        "throughput lost (%)",
        "p50 added (%)",
        "processor time added (%)",
        "the paper's loss (%)",
    )
    return Table("tax", "The tax of attention against the plain network, with 95 % interval", columns, rows)


def objective(rows: Sequence[Row]) -> Table:
    """Throughput at the objective."""
    out = []
    for variant, backbone in dict.fromkeys((one.variant, one.backbone) for one in rows):
        if curve(rows, variant):
            objective = objective_ms(rows, backbone)
            value, beyond = at_objective(rows, variant, objective)
            out.append((variant, f"{objective:g}", f"{'>= ' if beyond else ''}{value:.1f}"))
    return Table(
        "objective", "Arrivals a second with p99 within the objective", ("model", "objective (ms)", "images/s"), out
    )


def levels(rows: Sequence[Row]) -> Table:
    """Every row."""
    out = [
        (
            r.variant, r.level, "" if r.offered_per_s is None else f"{r.offered_per_s:.0f}", f"{r.answers}",
            f"{r.failures}", _short(r.per_s), _short(r.p50_ms), _short(r.p95_ms), _short(r.p99_ms),
            _short(r.processor_ms), f"{r.late_p99_ms:.2f}",
            *(f"{r.stages_ms.get(stage, math.nan):.1f}" for stage in STAGES),
        )
        for r in rows
    ]  # fmt: skip
    columns = (
        "model", "load", "offered/s", "answers", "failed", "images/s", "p50 (ms)", "p95 (ms)", "p99 (ms)",
        "processor (ms/answer)", "generator late p99 (ms)", *(f"{stage} (ms)" for stage in STAGES),
    )  # fmt: skip
    return Table("levels", "Everything measured; stages are means of a request", columns, out)


def table_3() -> Table:
    """Parameters and operations of the paper's table 3 beside ours."""
    out = []
    for published in TABLE_3:
        network = _weightless(with_formula(published.arch, published.attention, 1000))
        unit, digits = flops_unit(published.arch), 1 if published.arch.startswith("mobile") else 2
        suffix = "M" if published.arch.startswith("mobile") else "G"
        out.append(
            (
                f"{published.arch} {label(published.attention)}",
                f"{published.parameters:.2f}",
                f"{cost.parameters(network) / 2**20:.2f}",
                f"{published.flops:.{digits}f} {suffix}",
                f"{cost.paper_flops(network, 224) / unit:.{digits + 1}f} {suffix}",
                "" if published.fps is None else str(published.fps),
                "" if published.top1 is None else f"{published.top1:.2f}",
            )
        )
    columns = ("network", "parameters (Mi)", "ours", "FLOPs", "ours", "FPS, the paper", "top-1 (%), the paper")
    return Table("paper-table-3", "ECA-Net's table 3 beside what is built here", columns, out)


def table_2() -> Table:
    """What attention adds to ResNet-50 by the paper's table 2 beside ours; ECA's kernels are 3 there."""
    base = with_formula("resnet50", "none", 1000)
    sites, plain = site_channels(base), cost.parameters(_weightless(base))
    out = []
    for attention, (weights, top1) in TABLE_2.items():
        spec = with_formula("resnet50", attention, 1000)
        network = _weightless(replace(spec, sizes=(3,) * len(sites)) if attention == "eca" else spec)
        added, flops = cost.parameters(network) - plain, cost.paper_flops(network, 224) / flops_unit("resnet50")
        published = sum(weights(channels) for channels in sites)
        out.append((label(attention), f"{published:,}", f"{added:,}", f"{flops:.3f} G", f"{top1:.2f}"))
    columns = ("attention", "parameters added, the paper", "ours", "FLOPs, ours", "top-1 (%), the paper")
    return Table("paper-table-2", "ECA-Net's table 2, on ResNet-50, beside what is built here", columns, out)


def _weightless(spec: NetworkSpec) -> Network:
    with device("meta"):
        return create(spec)


def as_csv(table: Table, environment: dict[str, str]) -> str:
    """CSV, with the environment in comment lines above it."""
    out = io.StringIO()
    for key, value in environment.items():
        out.write(f"# {key}: {value}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return out.getvalue()


def _short(one: Estimate) -> str:
    digits = 0 if one.value >= 100 else 1
    return one.text(digits)
