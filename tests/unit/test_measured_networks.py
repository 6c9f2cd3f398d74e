"""The networks that are measured on a GPU: as they are made, and what becomes of the others when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_build.networks.attention import ECA
from eca_plugin import timing
from torch._library.triton import get_triton_kernels_for_op

from tests.gpu import networks, sites
from tests.gpu.sections import Run
from tests.unit.test_measure import run_of

FORWARD = networks.forward


def measured(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Iterator[str]:
    """The networks that are measured where the second of three cannot be prepared."""
    variants = [networks.Variant(attention) for attention in ("none", "se", "eca")]

    def forward(arch: str, variant: networks.Variant, image: torch.Tensor, *_: object) -> networks.Forward:
        if variant.attention == "se":
            raise error
        return FORWARD(arch, variant, image, run.folder, dry=True)

    monkeypatch.setattr(networks, "forward", forward)
    for variant, _ in networks.measure("tiny", variants, 1, None, run.folder, run.report, run.end, dry=True):
        yield variant.attention


def test_a_network_that_takes_all_the_time_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler may take minutes; when the time is over its process is told so by a signal."""
    run = run_of(tmp_path, 120)
    assert list(measured(run, monkeypatch, KeyboardInterrupt())) == ["none"]
    assert run.report.failed == ["tiny, SE plain, eager, batch 1"]


def test_after_a_capture_that_failed_another_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same one every later capture fails too, and so all networks after it would."""
    run = run_of(tmp_path, 120)
    with pytest.raises(timing.CaptureError):
        list(measured(run, monkeypatch, timing.CaptureError("cannot be captured")))
    assert run.report.failed == ["tiny, SE plain, eager, batch 1"]
    assert list(measured(run, monkeypatch, timing.CaptureError("cannot be captured"))) == ["none", "eca"]


def half(_gate: ECA, pooled: torch.Tensor) -> torch.Tensor:
    """A gate that lets half of everything through."""
    return torch.full_like(pooled, 0.5)


def test_a_network_that_is_wrong_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, 120)

    def forward(*arguments: Any) -> networks.Forward:
        made = FORWARD(*arguments)
        return lambda image: 2 * made(image)

    monkeypatch.setattr(networks, "forward", forward)
    variants = [networks.Variant("none")]
    assert list(networks.measure("tiny", variants, 1, None, run.folder, run.report, run.end, dry=True)) == []
    assert run.report.failed == ["tiny, baseline, eager, batch 1"]
    assert [note[:9] for note in run.report.notes] == ["WRONG by "]


@pytest.mark.parametrize("arch", sites.ARCHS)
def test_what_is_measured_has_numbers_and_depends_on_its_attention(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch norms as they are initialised MobileNetV2 was zeros in float16, and any network right."""
    means: list[float] = []
    forward = ECA.forward

    def noting(self: ECA, x: torch.Tensor) -> torch.Tensor:
        means.append(float(x.abs().mean()))
        return forward(self, x)

    image = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        network = sites.network(arch, "eca")
        with monkeypatch.context() as patch:
            patch.setattr(ECA, "forward", noting)
            expected = network(image).double().softmax(1)
        assert networks.difference(sites.network(arch, "eca")(image), expected) < networks.TOLERANCE / 10
        monkeypatch.setattr(ECA, "gate", half)
        assert networks.difference(network(image), expected) > networks.TOLERANCE
    assert min(means) > 0.01


def test_no_kernel_of_an_earlier_run_is_measured() -> None:
    """PyTorch's cache of compiled graphs lies on disk, and looks for kernels in the operators' sources, in vain."""
    import_module("eca_plugin.torch_operators")
    assert not any(get_triton_kernels_for_op(f"eca::{name}") for name in sites.FUSED.values())
    assert not torch._functorch.config.enable_autograd_cache


def test_packages_are_opened_for_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that option a package asks events whether they are over, and the capture of its CUDA graph fails."""
    opened = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda program, package_path: None)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path, **options: opened.append(options))
    with torch.inference_mode():
        networks.forward("tiny", networks.Variant("none", mode="aot"), torch.rand(1, 3, 16, 16), tmp_path, dry=False)
    assert opened == [{"run_single_threaded": True}]
