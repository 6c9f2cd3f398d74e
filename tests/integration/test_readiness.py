"""Golden answers: all of them at first, then one every five seconds, each image in its turn."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from eca_service.backend import Triton
from eca_service.contract import read
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.peers import Peers, make_board
from eca_service.readiness import CHECK_EVERY_S, Readiness
from eca_service.registry import Model, Registry
from eca_service.rollout import Rollout
from eca_service.tracing import Tracing

from tests.integration.conftest import MODEL, Service


def test_one_image_a_check(service: Service) -> None:
    """More of them beside full batches made a hundredth of the callers wait for one batch more."""

    def asked() -> int:
        with grpc.InferenceServerClient(f"127.0.0.1:{service.triton_port}") as client:
            return int(client.get_inference_statistics(MODEL).model_stats[0].inference_count)

    before = asked()
    assert before >= 2, "all of them before it is ready"
    end = time.monotonic() + 3 * CHECK_EVERY_S
    while (now := asked()) == before and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    assert now == asked() == before + 1


async def test_every_image_has_its_turn(service: Service, repository: Path) -> None:
    folder = repository / MODEL / "1"
    contract = read(folder)
    golden = contract.golden
    count, wrong = len(golden.probabilities), 1
    rows = [row[::-1] if at == wrong else row for at, row in enumerate(golden.probabilities)]
    forged = contract.model_copy(update={"golden": golden.model_copy(update={"probabilities": tuple(rows)})})
    triton = Triton(f"127.0.0.1:{service.triton_port}", False)
    try:
        assert await triton.fleet.look()
        await triton.fleet.load(forged, folder.parent, {1})
        engines, model = Engines(triton, Tracing(None)), Model(forged, folder)
        found = []
        for turn in range(2 * count):
            try:
                await engines.golden(model, turn)
            except ServiceError as error:
                found.append((turn, error.code))
        assert found == [(wrong, "model_not_ready"), (wrong + count, "model_not_ready")]
        with pytest.raises(ServiceError, match="a golden image's answer is off by"):
            await engines.golden(model)
        for change, reason in (
            ({"probabilities": ((math.nan,) * contract.classes,) * count}, "a golden image's answer is off by nan"),
            ({"sha256": "another's"}, "golden.npy is not the file that the build wrote"),
        ):
            other = contract.model_copy(update={"golden": golden.model_copy(update=change)})
            with pytest.raises(ServiceError, match=reason):
                await engines.golden(Model(other, folder))
    finally:
        await triton.close()


async def test_the_other_workers_know_at_once(
    service: Service, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a check takes longer than it is waited for: one of them that starts just then waits for its own."""
    monkeypatch.setattr("eca_service.readiness.CHECK_S", 0)
    monkeypatch.setattr("eca_service.readiness.RETRY_EVERY_S", 60)
    make_board(tmp_path / "board", 2)
    own, other = (Peers(index, tmp_path / "board") for index in (0, 1))
    triton, registry = Triton(f"127.0.0.1:{service.triton_port}", False), Registry(repository, None)
    engines = Engines(triton, Tracing(None))
    rollout = Rollout(registry, triton.fleet, engines, 60)
    readiness = Readiness(registry, triton.fleet, engines, rollout, own)
    own.listening = True
    watch = asyncio.create_task(readiness.watch())
    try:
        end = time.monotonic() + 30
        while not readiness.ready:
            assert time.monotonic() < end, readiness.reasons
            await asyncio.sleep(0.01)
        assert other.others_ready
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await rollout.close()
        await triton.close()
