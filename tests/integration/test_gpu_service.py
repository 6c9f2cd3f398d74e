"""The part of tests/gpu/measure.py that calls the whole service, against one that runs."""

from __future__ import annotations

import httpx
import pytest

from tests.gpu.service import load
from tests.integration.conftest import MODEL, ROOT, Service

IMAGE = (ROOT / "build" / "demo" / "images" / "dog-1.jpg").read_bytes()


def test_rates_and_latencies_of_each_model(service: Service) -> None:
    rows = list(load(service.url, [MODEL, "resnet14-se"], IMAGE, callers=2, seconds=0.6))
    assert [row["model"] for row in rows] == [MODEL, "resnet14-se"]
    for row in rows:
        assert float(row["images/s"]) > 0
        assert float(row["p99 ms"]) >= float(row["p50 ms"]) > 0
        assert int(row["images"]) >= 4


def test_a_call_that_fails_is_no_figure(service: Service) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        list(load(service.url, ["none"], IMAGE, callers=1, seconds=0.1))
