"""Timing on a stand-in for PyTorch's CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_plugin import timing
from eca_plugin.timing import spread


def test_spread_is_of_the_samples() -> None:
    found = spread([float(number) for number in range(1, 12)])
    assert (found.p10, found.p50, found.p90) == (2, 6, 10)
    assert spread([3.0]).p90 == 3


def test_what_an_idle_gpu_waits_for_is_no_time_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of eight launches that an idle GPU begins ten microseconds late."""
    launch_s, late_s = 5e-6, 10e-6
    ends = [0.0]  # of what was given to the GPU

    class Graph:
        def replay(self) -> None:
            ends.append(max(ends[-1], late_s) + 8 * launch_s)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = ends[-1]

        def synchronize(self) -> None:
            ends[:] = [0.0]  # idle again

        def elapsed_time(self, last: Event) -> float:
            return 1000 * (last.at - self.at)

    within = contextlib.nullcontext
    cuda = SimpleNamespace(
        is_available=lambda: True, synchronize=lambda: None, Stream=object, stream=lambda _stream: within(),
        CUDAGraph=Graph, graph=lambda _graph, stream: within(), Event=Event,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", cuda)
    assert timing.Timed([lambda: None] * 8).sample() == pytest.approx(launch_s, rel=0.01)


def test_a_capture_that_fails_is_told_with_what_failed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def broken_off(_graph: object, stream: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def asks() -> None:
        launches.append(0)
        if len(launches) > timing.WARM_UP:
            raise RuntimeError("nobody may ask that in a capture")

    launches: list[int] = []
    cuda = SimpleNamespace(
        is_available=lambda: True, synchronize=lambda: None, Stream=object, CUDAGraph=object, graph=broken_off,
        stream=lambda _stream: contextlib.nullcontext(),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", cuda)
    with pytest.raises(timing.CaptureError, match="cannot be captured as a CUDA graph: nobody may ask that"):
        timing.Timed([asks])
