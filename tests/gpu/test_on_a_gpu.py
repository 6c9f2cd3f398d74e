"""What only a GPU can prove: kernels that run are right, by every way they are launched, and so are whole networks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_build import custom_nodes
from eca_build.graphs import AttentionGraph
from eca_plugin import cluster_eca, tuner, tuning
from eca_plugin.ahead_of_time import Type
from eca_plugin.timing import Timed
from eca_plugin.tuning import Site

from tests.conftest import NO_GPU
from tests.gpu import kernels, networks, sites

# What PyTorch's compilers warn of is no fault of the kernels, and first seen on a GPU: elsewhere nothing runs here.
pytestmark = pytest.mark.filterwarnings("default")

# Sites of both networks, and shapes that fill no block: channels that are no power of two, odd maps.
ODD = [
    tuning.site("FusedECA", {"x": (1, 24, 17, 13), "w": (9,)}, "fp16", nhwc=True, residual=True, relu=True),
    tuning.site("FusedECA", {"x": (1, 13, 5, 3), "w": (7,)}, "fp16", nhwc=True, residual=False, relu=True),
    tuning.site("FusedECA", {"x": (1, 96, 112, 112), "w": (1,)}, "bf16", nhwc=False, residual=True, relu=False),
    tuning.site("ScaleAddReLU", {"x": (1, 13, 5, 3), "gate": (1, 13)}, "fp32", nhwc=False, residual=True, relu=True),
    tuning.site(
        "GatedConv1x1",
        {"h": (1, 40, 9, 7), "weight": (72, 40), "bias": (72,), "gate": (1, 72)},
        "bf16", nhwc=True, residual=True, relu=True,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def chip() -> int:
    """The GPU's compute capability, 90 for 9.0."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def wrong(found: list[Site], batch: int, chip: int) -> list[str]:
    """What differs from float64 by more than rounding."""
    compiled, _ = tuner.compile_all(found, chip, most=3)
    assert compiled
    tried, bad = 0, []
    for site in found:
        call = tuner.Call(site, batch, "cuda", seed=1)
        expected = kernels.exact(call)
        for plan, kernel, what in kernels.launches(site, chip, compiled):
            error = kernels.difference(call, expected, plan, kernel)
            tried += 1
            bad += [f"{what}: {error}"] if error > kernels.TOLERANCES[site.dtype] else []
    assert tried > len(found)
    return bad


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("graph", sites.FUSED)
def test_kernels_are_right(chip: int, graph: AttentionGraph, dtype: Type) -> None:
    assert wrong(list(sites.uses("resnet50", graph, dtype)), 3, chip) == []


def test_kernels_are_right_at_odd_shapes(chip: int) -> None:
    assert wrong(ODD, 2, chip) == []


@pytest.mark.parametrize("index", range(2))
def test_clusters_are_launched_as_they_are(chip: int, index: int) -> None:
    if chip < cluster_eca.CAPABILITY:
        pytest.skip(f"compute capability {chip / 10} has no thread-block clusters")
    site = list(sites.uses("resnet50", "fused", "fp16"))[index]
    plans = [plan for plan in site.plans(chip) if plan.is_cuda]
    assert plans
    compiled, _ = tuner.compile_all([site], chip)
    call = tuner.Call(site, 4, "cuda")
    expected = kernels.exact(call)
    for plan in plans:
        assert kernels.difference(call, expected, plan, compiled[site, plan.label]) <= kernels.TOLERANCES["fp16"]
        first = call.out.clone()
        for _ in range(20):
            call.launch(plan, compiled[site, plan.label])
            assert torch.equal(call.out, first), "the same sums in the same order"


@pytest.mark.parametrize("mode", ["eager", "compiled", "aot"])
@pytest.mark.parametrize("graph", ["plain", "hoisted", *sites.FUSED])
def test_networks_agree(chip: int, tmp_path: Path, graph: AttentionGraph, mode: networks.Mode) -> None:
    if mode != "eager" and graph not in ("fused", "epilogue"):
        pytest.skip("one of its own kernels is enough to compile")
    image = torch.rand(2, 3, 224, 224, device="cuda").half().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = networks.exact("resnet50", "eca", image)
        with custom_nodes.as_operators() if graph in sites.FUSED else nullcontext():
            run = networks.forward("resnet50", networks.Variant("eca", graph, mode), image, tmp_path, dry=False)
            assert networks.difference(run(image), expected) <= networks.TOLERANCE
            Timed([lambda: run(image)])  # it can be captured as a CUDA graph
