"""Measures the kernels and the networks on this machine's GPU, the most important first, within ten minutes.

    python -m tests.gpu.measure --out FOLDER [--write build/plugin/MEASURED.md]

from the repository's root. It needs PyTorch 2.11, Triton 3.6 and this repository, no installation. Every figure is
written to FOLDER/measured.json as soon as there is one, and FOLDER/kernels.json is the table of the fastest kernels.
`--dry-run` goes through all of it on a CPU, under Triton's interpreter, with tiny shapes: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[2]
for home in (ROOT, ROOT / "build", ROOT / "build" / "plugin", ROOT / "service"):
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton
from eca_build.graphs import AttentionGraph
from eca_plugin import tuner, tuning
from eca_plugin.sources import kernels_sha256
from eca_plugin.timing import Spread, copy_bandwidth

from tests.gpu import kernels, networks, service, sites
from tests.gpu.report import Report, Row

if TYPE_CHECKING:
    from eca_plugin.ahead_of_time import Type

DESIGN_BATCH = 32
BATCHES = (32, 1, 8, 128)


@dataclass
class Run:
    """What the sections share; all of them have `seconds`, the earlier the more."""

    folder: Path
    report: Report
    seconds: float
    dry: bool
    chip: int | None
    cache_bytes: int
    copy: float
    device: str
    compiled: tuner.Kernels = field(default_factory=dict)
    table: tuning.Table | None = None
    best: dict[str, AttentionGraph] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def archs(self) -> tuple[str, ...]:
        """The networks."""
        return (sites.TINY,) if self.dry else sites.ARCHS

    @property
    def dtype(self) -> Type:
        """The type of most sections."""
        return "fp32" if self.dry else "fp16"

    def compile(self, wanted: list[tuning.Site], most: int | None = None) -> None:
        """Makes the kernels of sites that have none yet."""
        if not self.dry and self.chip is not None:
            known = {site for site, _ in self.compiled}
            self.compiled |= tuner.compile_all([site for site in wanted if site not in known], self.chip, most)


def correctness(run: Run) -> Iterator[Row]:
    """Every kernel against its definition in float64: all sites, and odd shapes, types and layouts."""
    found = [site for arch in run.archs for graph in sites.FUSED for site in sites.uses(arch, graph, run.dtype)]
    run.compile(found)
    if not run.dry:
        others: list[tuple[Type, bool]] = [("bf16", True), ("fp32", True), ("fp16", False)]
        rest = [site for kind in others for graph in sites.FUSED for site in sites.uses("resnet50", graph, *kind)]
        run.compile(rest, most=2)
        found += rest
    worst: dict[tuple[str, str], tuple[float, str, int]] = {}
    batch = 1 if run.dry else 3
    for site, what, difference in kernels.differences(found, batch, run.chip, run.compiled, run.device):
        before, where, count = worst.get((site.operator, site.dtype), (0.0, "", 0))
        larger = difference >= before
        worst[site.operator, site.dtype] = (
            max(before, difference), f"{site.key}: {what}" if larger else where, count + 1
        )  # fmt: skip
        if difference > kernels.TOLERANCES[site.dtype]:
            run.report.note(f"WRONG by {difference:.2g}: {site.key}, {what}")
    for (operator, dtype), (difference, where, count) in worst.items():
        right = difference <= kernels.TOLERANCES[dtype]
        yield {"operator": operator, "type": dtype, "kernels": count, "largest difference": difference,
               "right": "yes" if right else "NO", "worst": where}  # fmt: skip


def bandwidth(run: Run) -> Iterator[Row]:
    """Every site at every batch: the fastest kernel, and the one taken without measuring, over a copy's speed."""
    if run.dry or run.chip is None:
        run.report.note("bandwidth of the kernels: an interpreter has none")
        return
    run.table = tuning.Table(torch.cuda.get_device_name(0), run.chip)
    end = time.monotonic() + 0.45 * run.left_s
    for batch in BATCHES:
        for arch in run.archs:
            for graph in sites.FUSED:
                for site, count in sites.uses(arch, graph, run.dtype).items():
                    if time.monotonic() > end:
                        run.report.note(f"bandwidth from batch {batch}, {arch}, {site.key} on: no time left")
                        return
                    bytes_, taken = kernels.bandwidths(
                        site, batch, run.compiled, run.chip, run.cache_bytes, seconds=0.02
                    )
                    if batch == DESIGN_BATCH:
                        run.table.choices[site.key] = list(taken)
                        run.table.save(run.folder / "kernels.json")
                    first = site.plans(run.chip)[0].label
                    label, fastest = next(iter(taken.items()))
                    row: Row = {"network": arch, "site": site.key, "uses": count, "batch": batch, "MB": bytes_ / 1e6}
                    row |= {"fastest": label, "µs": fastest.p50 * 1e6, "of copy": bytes_ / fastest.p50 / run.copy}
                    row |= {"default of copy": bytes_ / taken[first].p50 / run.copy} if first in taken else {}
                    clusters = [one for name, one in taken.items() if name.startswith("cluster")]
                    row |= {"cluster of copy": bytes_ / clusters[0].p50 / run.copy} if clusters else {}
                    yield row


def eager(run: Run) -> Iterator[Row]:
    """Whole networks as CUDA graphs: every graph at the design batch, then at the others."""
    batches = (1,) if run.dry else BATCHES
    for batch in batches:
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
        variants = networks.compiled(mode, run.best.get(arch, "plain"))
        yield from _networks(run, arch, variants, 1 if run.dry else DESIGN_BATCH)


def _networks(run: Run, arch: str, variants: tuple[networks.Variant, ...], batch: int) -> Iterator[Row]:
    if run.left_s < 20 and not run.dry:
        run.report.note(f"{arch} at batch {batch}, {variants[0].mode}: no time left")
        return
    baseline: Spread | None = None
    fastest: dict[AttentionGraph, float] = {}
    found = networks.measure(arch, variants, batch, run.table, 1.0, run.folder, run.dry)
    for variant, taken in found:
        if isinstance(taken, str):
            run.report.note(f"{arch}, {variant.name}, batch {batch}: {taken}")
            continue
        row: Row = {"network": arch, "variant": variant.name, "batch": batch, "ms": taken.p50 * 1e3}
        row |= {"p10": taken.p10 * 1e3, "p90": taken.p90 * 1e3, "images/s": batch / taken.p50}
        if variant.attention == "none":
            baseline = taken
        elif baseline:
            row |= {"tax %": 100 * (taken.p50 / baseline.p50 - 1)}
            # the spread of both, at its widest
            row |= {"tax from": 100 * (taken.p10 / baseline.p90 - 1), "to": 100 * (taken.p90 / baseline.p10 - 1)}
        if variant.attention == "eca":
            fastest[variant.graph] = taken.p50
        yield row
    if fastest and variants is networks.EAGER and batch in (1 if run.dry else DESIGN_BATCH,):
        run.best[arch] = min(fastest, key=lambda graph: fastest[graph])


def serving(run: Run) -> Iterator[Row]:
    """The whole service over its HTTP interface, with the engine that this machine runs."""
    yield from service.measure(run.folder, run.dry, run.left_s, run.report.note)


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "correctness": correctness,
    "bandwidth": bandwidth,
    "networks": eager,
    "compiled": compiled,
    "aot": aot,
    "service": serving,
}


def environment(dry: bool) -> tuple[Row, int | None, int]:
    """What the figures depend on, the compute capability (90 is 9.0), and the bytes of the L2 cache."""
    command = " ".join(["python -m tests.gpu.measure", *sys.argv[1:]])
    found: Row = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "command": command}
    found |= {"torch": torch.__version__, "triton": triton.__version__, "kernels": kernels_sha256()[:12]}
    if dry:
        return found | {"chip": "none: a dry run, whose figures mean nothing"}, None, 1 << 16
    if not torch.cuda.is_available():
        sys.exit("measure: PyTorch finds no GPU here; --dry-run goes through all sections on a CPU")
    chip = torch.cuda.get_device_properties(0)
    found |= {"chip": chip.name, "multiprocessors": chip.multi_processor_count, "L2 MB": chip.L2_cache_size / 1e6}
    return found | {"cuda": torch.version.cuda or "?"}, 10 * chip.major + chip.minor, chip.L2_cache_size


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures; made where it is missing")
    parser.add_argument("--write", type=Path, help="page between whose marks the tables go, such as MEASURED.md")
    parser.add_argument("--seconds", type=float, default=560, help="the whole run's time, default %(default)s")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes, to see that nothing breaks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dry = options.dry_run
    found, chip, cache_bytes = environment(dry)
    copy = copy_bandwidth(1 << 20 if dry else 1 << 30, 0.0 if dry else 0.5)
    found["copy GB/s"] = copy / 1e9
    report = Report(options.out / "measured.json", found)
    report.save()
    run = Run(options.out, report, options.seconds, dry, chip, cache_bytes, copy, "cpu" if dry else "cuda")
    for name in options.only or SECTIONS:
        print(f"measure: {name}, {run.left_s:.0f} s left", file=sys.stderr, flush=True)
        try:
            for row in SECTIONS[name](run):
                report.add(name, row)
                print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)
        except Exception as error:  # a section that fails must not take the others' figures along
            if dry:
                raise
            report.note(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
    (options.out / "measured.md").write_text(report.markdown())
    if options.write:
        report.write_into(options.write)
    print(report.markdown())


if __name__ == "__main__":
    main()
