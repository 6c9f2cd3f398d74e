"""What is measured, section by section: each gives rows until it has nothing more to measure, or no time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from eca_build.graphs import ATTENTION_GRAPHS, AttentionGraph
from eca_plugin import tuner, tuning
from eca_plugin.gated_conv1x1 import WGMMA
from eca_plugin.timing import Spread

from tests.gpu import kernels, networks, portable, service, sites
from tests.gpu.report import Report, Row

if TYPE_CHECKING:
    from eca_plugin.ahead_of_time import Type

KERNEL_S, SITE_S = 20.0, 60.0  # a launch that takes so long, or the timing of one site's kernels, will never end
DESIGN_BATCH = 32
# What may all fail alike, by what its names end with or contain: each may end a process, and tries are few.
FAMILIES: dict[str, Callable[[str], bool]] = {
    "kernels with clusters": lambda name: "cluster of " in name,
    "kernels with wgmma": lambda name: WGMMA in name,
}
ENOUGH = 2
BATCHES = (32, 1, 8, 128)


@dataclass
class Run:
    """What the sections share: `folder` has what they leave to each other, `end` is when the present one must be over.

    `chip` is the compute capability (90 is 9.0), None in a dry run, `copy` the bytes a second of a copy.
    """

    folder: Path
    report: Report
    gpu: str
    chip: int | None
    cache_bytes: int
    copy: float
    end: float = float("inf")

    @property
    def dry(self) -> bool:
        """Whether it is on a CPU, with tiny shapes."""
        return self.chip is None

    @property
    def left_s(self) -> float:
        """Seconds until the end; processes share this clock."""
        return self.end - time.monotonic()

    @property
    def archs(self) -> tuple[str, ...]:
        """The networks."""
        return (sites.TINY,) if self.dry else sites.ARCHS

    @property
    def dtype(self) -> Type:
        """The type of most sections."""
        return "fp32" if self.dry else "fp16"

    @property
    def batches(self) -> tuple[int, ...]:
        """The batches that are measured, the most important first."""
        return (1,) if self.dry else BATCHES

    @property
    def device(self) -> str:
        """PyTorch's name of it."""
        return "cpu" if self.dry else "cuda"

    @property
    def table_file(self) -> Path:
        """Where the table of the fastest kernels is kept."""
        return self.folder / "kernels.json"

    def compile(self, wanted: list[tuning.Site], most: int | None = None) -> tuner.Kernels:
        """The kernels of sites, the first `most` of each, without those that failed; what was not compiled is noted."""
        if self.chip is None:
            return {}
        found, refused = tuner.compile_all(wanted, self.chip, most)
        for reason, count in refused.items():
            if (note := f"{count} kernels left out: {reason}") not in self.report.notes:
                self.report.note(note)
        failed = set(self.report.failed)
        for family, belongs in FAMILIES.items():
            if sum(map(belongs, failed)) >= ENOUGH:
                found = {key: kernel for key, kernel in found.items() if not belongs(key[1])}
                if (note := f"no more {family} are tried: {ENOUGH} failed") not in self.report.notes:
                    self.report.note(note)
        names = {(site, plan.label): kernels.name(site, plan) for site in wanted for plan in site.plans(self.chip)}
        return {key: kernel for key, kernel in found.items() if names[key] not in failed}

    def best(self, arch: str) -> AttentionGraph:
        """The graph in which the ECA network was the fastest so far."""
        rows = [row for row in self.report.rows("networks") if row["network"] == arch]
        of = {networks.Variant("eca", graph).name: graph for graph in ATTENTION_GRAPHS}
        taken = [(row["ms"], of[str(row["variant"])]) for row in rows
                 if row["variant"] in of and row["batch"] == self.batches[0]]  # fmt: skip
        return min(taken)[1] if taken else "plain"


def correctness(run: Run) -> Iterator[Row]:
    """Every kernel against its definition in float64: all sites, and odd shapes, types and layouts."""
    found = [site for arch in run.archs for graph in sites.FUSED for site in sites.uses(arch, graph, run.dtype)]
    compiled = run.compile(found)
    if not run.dry:
        others: list[tuple[Type, bool]] = [("bf16", True), ("fp32", True), ("fp16", False)]
        rest = [site for kind in others for graph in sites.FUSED for site in sites.uses("resnet50", graph, *kind)]
        compiled |= run.compile(rest, most=2)
        found += rest
    groups = defaultdict[tuple[str, str], list[tuning.Site]](list)
    for site in found:
        groups[site.operator, site.dtype].append(site)
    told = {(row["operator"], row["type"]) for row in run.report.rows("correctness")}
    for (operator, dtype), of_kind in groups.items():
        if (operator, dtype) in told:  # by a process that died later
            continue
        worst, where, count = 0.0, "", 0
        for difference, what in _differences(run, of_kind, compiled):
            worst, where, count = *max((worst, where), (difference, what)), count + 1
        right = worst <= kernels.TOLERANCES[of_kind[0].dtype]
        if not count:  # no time was left, or no kernel was compiled
            continue
        yield {"operator": operator, "type": dtype, "kernels": count, "largest difference": worst,
               "right": "yes" if right else "NO", "worst": where}  # fmt: skip


def _differences(run: Run, wanted: list[tuning.Site], compiled: tuner.Kernels) -> Iterator[tuple[float, str]]:
    """The largest difference of each launch; what is wrong is noted, and no longer measured."""
    for site in wanted:
        if run.left_s < 0:
            run.report.note(f"correctness of {site.key}: no time left")
            continue
        call = tuner.Call(site, 1 if run.dry else 3, run.device, seed=1)
        expected = kernels.exact(call)
        for plan, kernel, what in kernels.launches(site, run.chip, compiled):
            if what in run.report.failed:
                yield float("inf"), what
                continue
            try:
                # by PyTorch it is compiled too, and that kernel has ended here before
                with run.report.trying(what, KERNEL_S if kernel else None):
                    difference = kernels.difference(call, expected, plan, kernel)
            except Exception as error:
                run.report.note(f"FAILED: {what}: {str(error).strip()[:200]}")
                difference = float("inf")
                if not run.dry:
                    torch.cuda.synchronize()  # fails too where nothing runs in this process any more
            else:
                if difference > kernels.TOLERANCES[site.dtype]:
                    run.report.fail(what)
                    run.report.note(f"WRONG by {difference:.2g}: {what}")
            yield difference, what


def bandwidth(run: Run) -> Iterator[Row]:
    """Every site at every batch: the fastest kernel, and the one taken without measuring, over a copy's speed."""
    if run.chip is None:
        run.report.note("bandwidth of the kernels: an interpreter has none")
        return
    wanted = [(arch, sites.uses(arch, graph, run.dtype)) for arch in run.archs for graph in sites.FUSED]
    compiled = run.compile([site for _, uses in wanted for site in uses])
    table = tuning.load(run.table_file, run.gpu) or tuning.Table(run.gpu, run.chip)
    told = {(row["network"], row["site"], row["batch"]) for row in run.report.rows("bandwidth")}
    for batch in run.batches:
        for arch, uses in wanted:
            for site, count in uses.items():
                what = f"bandwidth at batch {batch}: {arch}, {site.key}"
                if (arch, site.key, batch) in told or what in run.report.failed:
                    continue
                if run.left_s < 0:
                    run.report.note(f"{what}, and all after it: no time left")
                    return
                with run.report.trying(what, SITE_S):
                    bytes_, cold, taken = kernels.bandwidths(
                        site, batch, compiled, run.chip, run.cache_bytes, seconds=0.02
                    )
                if not taken:
                    run.report.note(f"{what}: no kernel of it was compiled and is right")
                    continue
                if batch == DESIGN_BATCH:
                    table.choices[site.key] = list(taken)
                    table.save(run.table_file)
                first = site.plans(run.chip)[0].label
                label, fastest = next(iter(taken.items()))
                row: Row = {"network": arch, "site": site.key, "uses": count, "batch": batch, "MB": bytes_ / 1e6}
                row |= {"fastest": label, "µs": fastest.p50 * 1e6}
                clusters = [one for one_label, one in taken.items() if one_label.startswith("cluster")]
                told_of = [("of copy", fastest), ("default of copy", taken.get(first))]
                told_of += [("cluster of copy", clusters[0] if clusters else None)]
                if cold:  # else it is the cache's speed, which no copy has
                    row |= {column: bytes_ / one.p50 / run.copy for column, one in told_of if one}
                yield row


def eager(run: Run) -> Iterator[Row]:
    """Whole networks as CUDA graphs: every graph at the design batch, then at the others."""
    for batch in run.batches:
        for arch in run.archs:
            yield from _networks(run, arch, networks.EAGER, batch)


def compiled(run: Run) -> Iterator[Row]:
    """Whole networks by torch.compile."""
    yield from _compiled(run, "compiled")


def aot(run: Run) -> Iterator[Row]:
    """Whole networks by AOTInductor, as --target inductor ships them."""
    yield from _compiled(run, "aot")


def _compiled(run: Run, mode: networks.Mode) -> Iterator[Row]:
    for arch in run.archs:
        yield from _networks(run, arch, networks.compiled(mode, run.best(arch)), run.batches[0])


def _networks(run: Run, arch: str, variants: tuple[networks.Variant, ...], batch: int) -> Iterator[Row]:
    names = {variant.name for variant in variants}
    rows = [row for of_section in run.report.sections.values() for row in of_section]
    if any(row.get("variant") in names and (row["network"], row["batch"]) == (arch, batch) for row in rows):
        return  # told by a process that died later
    baseline: Spread | None = None
    table = None if run.chip is None else tuning.load(run.table_file, run.gpu)
    for variant, taken in networks.measure(arch, variants, batch, table, run.folder, run.report, run.end, run.dry):
        row: Row = {"network": arch, "variant": variant.name, "batch": batch, "ms": taken.p50 * 1e3}
        row |= {"p10": taken.p10 * 1e3, "p90": taken.p90 * 1e3, "images/s": batch / taken.p50}
        if variant.attention == "none":
            baseline = taken
        elif baseline:
            row |= {"tax %": 100 * (taken.p50 / baseline.p50 - 1)}
            # the spread of both, at its widest
            row |= {"tax from": 100 * (taken.p10 / baseline.p90 - 1), "to": 100 * (taken.p90 / baseline.p10 - 1)}
        yield row


def rtx(run: Run) -> Iterator[Row]:
    """TensorRT-RTX's engines, where it is installed: whether this GPU runs them."""
    yield from portable.measure(run.archs, run.batches[0], run.dtype, run.folder, run.report, run.end)


def serving(run: Run) -> Iterator[Row]:
    """The whole service over its HTTP interface, with the engine that this machine runs."""
    yield from service.measure(run.folder, run.dry, run.end, run.report.note, run.best("resnet50"))


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "correctness": correctness,
    "bandwidth": bandwidth,
    "networks": eager,
    "compiled": compiled,
    "aot": aot,
    "rtx": rtx,
    "service": serving,
}
# Of the time that is left when a section begins, how much it may take.
SHARES = dict(zip(SECTIONS, (0.4, 0.45, 0.55, 0.5, 0.7, 0.3, 1.0), strict=True))
