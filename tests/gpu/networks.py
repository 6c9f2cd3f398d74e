"""Whole networks: the time of a batch, and what attention costs in per cent of the network without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch._functorch.config
from eca_build import custom_nodes
from eca_build.graphs import AttentionGraph
from eca_build.networks.attention import Kind
from eca_plugin import tuning
from eca_plugin.timing import CaptureError, Spread, Timed, spread
from torch import Tensor

from tests.gpu import sites
from tests.gpu.report import Report

Mode = Literal["eager", "compiled", "aot"]
Forward = Callable[[Tensor], Tensor]
SECONDS, TURNS = 1.0, 5
# The largest difference of a probability from float64 that is float16's rounding: ECA-ResNet-50's is a sixth of it, and
# ECA-MobileNetV2's a third; a gate that is always a half makes 1.7 and 11 times as much.
TOLERANCE = 1e-3
# Its key has our operators' names and shapes, neither the kernels' sources nor the table: torch.compile would launch
# what an earlier run compiled.
torch._functorch.config.enable_autograd_cache = False


@dataclass(frozen=True)
class Variant:
    """A network in one graph, run in one way."""

    attention: Kind
    graph: AttentionGraph = "plain"
    mode: Mode = "eager"

    @property
    def label(self) -> str:
        """The network and its graph."""
        attention = {"none": "baseline", "se": "SE", "eca": "ECA"}[self.attention]
        return f"{attention} {self.graph}" if self.attention != "none" else attention

    @property
    def name(self) -> str:
        """It, on one line."""
        return f"{self.label}, {self.mode}"


EAGER = (
    Variant("none"),
    Variant("se"),
    *(Variant("eca", graph) for graph in ("plain", "fused", "epilogue", "hoisted-fused", "hoisted")),
    *(Variant("se", graph) for graph in ("epilogue", "hoisted-fused")),
)


def compiled(mode: Mode, best: AttentionGraph) -> tuple[Variant, ...]:
    """What is measured in a mode whose compiler takes its time: `best` is the graph that was the fastest without it."""
    fused = [Variant("eca", best, mode)] if best != "plain" else []  # what matters most comes first
    return (Variant("none", mode=mode), *fused, Variant("eca", mode=mode), Variant("se", mode=mode))


def forward(arch: str, variant: Variant, image: Tensor, folder: Path, dry: bool) -> Forward:
    """The network as a function of images such as `image`; what it is compiled into lies in `folder`."""
    net = sites.network(arch, variant.attention, variant.graph).to(image.device, image.dtype)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant.mode == "eager":
        return cast(Forward, net)
    if variant.mode == "compiled":
        return cast(Forward, torch.compile(net, backend="eager" if dry else "inductor", dynamic=False))
    program = torch.export.export(net, (image,))
    if dry:
        return cast(Forward, program.module())
    package = folder / f"{arch}-{variant.attention}-{variant.graph}.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    # else it asks an event whether its last run has ended, which nobody may while a CUDA graph is captured
    return cast(Forward, torch._inductor.aoti_load_package(str(package), run_single_threaded=True))


def exact(arch: str, attention: Kind, image: Tensor) -> Tensor:
    """What the network answers to the first two of such images: probabilities float64 [2, K]."""
    net = sites.network(arch, attention).to(image.device, torch.float64)
    answers: Tensor = net(image[:2].double()).softmax(1)
    return answers


def difference(logits: Tensor, expected: Tensor) -> float:
    """The largest of the first two images' probabilities from `exact`'s; infinite where one is no number."""
    return float((logits[:2].double().softmax(1) - expected).abs().nan_to_num(torch.inf).max())


def measure(
    arch: str,
    variants: Sequence[Variant],
    batch: int,
    table: tuning.Table | None,
    folder: Path,
    report: Report,
    end: float,
    dry: bool = False,
) -> Iterator[tuple[Variant, Spread]]:
    """Each variant with seconds a batch, as CUDA graphs replayed in turns for SECONDS each.

    Those that fail or are wrong, and those for which there is no time until `end`, of time.monotonic(), are noted in
    the report. After a KeyboardInterrupt, by which a process is told that its time is over, no more are prepared.
    Raises CaptureError: a process of its own is for the others.
    """
    torch.backends.cudnn.benchmark = True  # else our measured kernels stand beside what cuDNN guesses
    device = "cpu" if dry else "cuda"
    side = sites.pixels(arch)
    dtype = torch.float32 if dry else torch.float16
    image = torch.rand(batch, 3, side, side, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    timed: dict[Variant, Timed] = {}
    expected: dict[Kind, Tensor] = {}
    longest, turns = 0.0, 1 if dry else TURNS
    # What is compiled is opaque to an interpreter: a dry run compiles plain graphs alone.
    with torch.inference_mode(), tuning.use(table):
        for variant in variants:
            fused = variant.graph in sites.FUSED
            what = f"{arch}, {variant.name}, batch {batch}"
            if what in report.failed or (dry and fused and variant.mode != "eager"):
                continue
            began = time.monotonic()
            if began + longest + SECONDS * (len(timed) + 1) > end:
                report.note(f"{what}: no time left")
                continue
            try:
                if variant.attention not in expected:
                    expected[variant.attention] = exact(arch, variant.attention, image)
                with report.trying(what), custom_nodes.as_operators() if fused else nullcontext():
                    run = forward(arch, variant, image, folder, dry)
                    wrong = difference(run(image), expected[variant.attention])
                    if wrong <= TOLERANCE:
                        timed[variant] = Timed([lambda run=run: run(image)])  # type: ignore[misc]
                if wrong > TOLERANCE:
                    report.fail(what)
                    report.note(f"WRONG by {wrong:.2g}: {what}")
            except KeyboardInterrupt:  # a compiler took all the time there was
                turns = 1
                break
            except Exception as error:  # one compiler's failure is a row of the report, the others are measured
                report.note(f"{what}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
                if isinstance(error, CaptureError):
                    raise
                if not dry:
                    torch.cuda.synchronize()  # fails too where nothing runs in this process any more
            longest = max(longest, time.monotonic() - began)
        samples: dict[Variant, list[float]] = {variant: [] for variant in timed}
        for _ in range(turns):  # the clock drifts
            for variant, one in timed.items():
                with custom_nodes.as_operators() if variant.graph in sites.FUSED else nullcontext():
                    samples[variant] += one.samples(0 if dry else SECONDS / TURNS)
    for variant, taken in samples.items():
        yield variant, spread(taken)
