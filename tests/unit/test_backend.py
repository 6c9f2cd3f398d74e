"""The way of images to Triton and back, where servers fail, or are of a version that is not here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from eca_service import backend
from eca_service.backend import LONGEST_CALL_S, Triton
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.infer_request import with_pixels
from eca_service.reconnecting import Reconnecting
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from tests.load import noop
from tests.unit.made_triton import Never, connected, serving


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    return noop.publish(tmp_path)


@pytest.fixture(params=[Reconnecting, Never], ids=["http2", "grpc"])
def only(request: pytest.FixtureRequest) -> type[Reconnecting]:
    """Who is asked first: our own connection, or gRPC's client, which answers what it does not."""
    kind: type[Reconnecting] = request.param
    return kind


def images(count: int = 1, first: int = 0) -> list[NDArray[np.uint8]]:
    """Images of one value each, from `first` on."""
    return [np.full((noop.CROP, noop.CROP, 3), first + index, np.uint8) for index in range(count)]


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.parametrize("width", [1, 42, 43, 84, 85, 86, 5461, 5462, 699_050, 699_051])
def test_a_request_is_written_as_protobuf_writes_it(contract: Contract, width: int) -> None:
    """Of three bytes times `width`: around powers of 128, and of two, an end is easily lost."""
    image = np.random.default_rng(0).integers(0, 256, (1, width, 3), np.uint8)
    read = service_pb2.ModelInferRequest.FromString(with_pixels([image], contract, ("probabilities",)))
    assert read.raw_input_contents == [image.tobytes()]
    assert [output.name for output in read.outputs] == ["probabilities"]


@pytest.mark.parametrize(("version", "told"), [("2.51.0", False), ("2.57.1", False), ("2.58.0", True), ("3.0", True)])
async def test_who_is_told_that_a_caller_has_gone(
    contract: Contract, only: type[Reconnecting], version: str, told: bool
) -> None:
    """Only a Triton that bears it."""
    async with serving(version, held=True, only=only) as (server, triton):
        task = asyncio.create_task(triton.infer(images(), contract, in_s(20)))
        await asyncio.wait_for(server.began.wait(), 10)
        assert (server.left_s[0] < 21) == told, "nor of its deadline, which would end the call too"
        assert server.left_s[0] < LONGEST_CALL_S + 1
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
        assert task.done() == told, "whoever is not told has the engine's place for as long as it works"
        if not told:
            server.answer.set()
        assert await asyncio.wait_for(server.seen.get(), 10) == ("cancelled" if told else "answered")
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("version", ["2.51.0", "2.74.0"])
async def test_an_answer_is_an_answer(contract: Contract, only: type[Reconnecting], version: str) -> None:
    wide = contract.model_copy(update={"outputs": ("probabilities", "features"), "features_shape": (2, 3, 3)})
    async with serving(version, only=only) as (server, triton):
        answer = await triton.infer(images(3, 7), wide, in_s(20), ("features",), (("traceparent", "00-x"),))
        assert {name: tensor.shape for name, tensor in answer.items()} == {
            "probabilities": (3, noop.CLASSES),
            "features": (3, 2, 3, 3),
        }
        for tensor in answer.values():
            assert [set(row.flat) for row in tensor] == [{7}, {8}, {9}], "each has its own image's"
        assert server.metadata["traceparent"] == "00-x"
        (request,) = server.requests
        (tensor,) = request.inputs
        assert (request.model_name, request.model_version) == (noop.NAME, "1")
        assert (tensor.name, tensor.datatype, tensor.shape) == ("image", "UINT8", [3, noop.CROP, noop.CROP, 3])
        server.sizes["probabilities"] += 1
        with pytest.raises(ServiceError, match="internal: Triton answered 22 probabilities for 2 images"):
            await triton.infer(images(2), contract, in_s(20))


async def test_a_deadline_is_triton_s_too(contract: Contract, only: type[Reconnecting]) -> None:
    async with serving(held=True, only=only) as (server, triton):
        with pytest.raises(ServiceError, match="deadline_exceeded"):
            await asyncio.wait_for(triton.infer(images(), contract, in_s(0.5)), 10)
        assert server.left_s[0] < 0.7, "gRPC rounds up"


async def test_where_no_server_is_known(contract: Contract) -> None:
    with pytest.raises(ServiceError, match="backend_unavailable: no Triton"):
        await Triton("127.0.0.1:1").infer(images(), contract, in_s(1))


@pytest.mark.parametrize("status", ["UNAVAILABLE", "NOT_FOUND"])
async def test_a_batch_that_is_not_taken_is_sent_again(
    contract: Contract, only: type[Reconnecting], status: str
) -> None:
    """By gRPC, which keeps what it has sent for that: here twenty times of what it keeps by itself."""
    async with serving(only=only) as (server, triton):
        server.refusals = [status] * 3
        answer = await triton.infer(images(32), contract, in_s(20))
        assert answer["probabilities"][:, 0].tolist() == list(range(32))


async def test_a_server_whose_frames_are_none_to_us(contract: Contract, caplog: pytest.LogCaptureFixture) -> None:
    """As behind a proxy that speaks another protocol: gRPC's client gets the answer, and one line says so."""
    async with serving() as (ours, triton):
        connection = triton._only.usable()
        assert connection
        ours.answer.clear()
        batch = asyncio.create_task(triton.infer(images(), contract, in_s(20)))
        await ours.began.wait()
        connection.data_received(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        ours.answer.set()
        assert (await batch)["probabilities"][0, 0] == 0
        for index in range(1, 4):
            answer = await triton.infer(images(first=index), contract, in_s(20))
            assert answer["probabilities"][0, 0] == index
    assert len(caplog.records) == 1
    assert "breaks HTTP/2 (a frame of 4740180 bytes)" in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "tries"),
    [("UNAVAILABLE", "backend_unavailable", 4), ("NOT_FOUND", "model_not_ready", 4), ("INTERNAL", "internal", 1)],
)
async def test_what_is_not_taken_again_and_again_fails(
    contract: Contract, only: type[Reconnecting], status: str, code: str, tries: int
) -> None:
    async with serving(only=only) as (server, triton):
        server.refusals = [status] * 10
        with pytest.raises(ServiceError) as failure:
            await triton.infer(images(), contract, in_s(20))
        again = only is Reconnecting and tries > 1  # our connection's try, before gRPC's
        assert (failure.value.code, len(server.requests)) == (code, tries + again)


async def test_servers_take_turns(contract: Contract, only: type[Reconnecting]) -> None:
    async with serving(only=only) as (first, triton), serving(only=only) as (second, _):
        triton.fleet.serving = frozenset({first.url, second.url})
        await connected(triton)
        for _ in range(500):  # until both are connected to
            await triton.infer(images(), contract, in_s(20))
            if first.requests and second.requests:
                break
            await asyncio.sleep(0.02)
        before = len(first.requests), len(second.requests)
        for _ in range(10):
            await triton.infer(images(), contract, in_s(20))
        assert (len(first.requests), len(second.requests)) == (before[0] + 5, before[1] + 5)


async def test_calls_to_a_server_that_gets_no_more_end_in_peace(contract: Contract, only: type[Reconnecting]) -> None:
    async with serving(held=True, only=only) as (old, triton), serving(only=only) as (new, _):
        task = asyncio.create_task(triton.infer(images(1, 3), contract, in_s(20)))
        await asyncio.wait_for(old.began.wait(), 10)
        triton.fleet.serving = frozenset({new.url})
        await connected(triton)
        await triton.infer(images(), contract, in_s(20))
        assert (len(old.requests), len(new.requests)) == (1, 1)
        old.answer.set()
        assert set((await task)["probabilities"].flat) == {3}


async def test_what_is_not_answered_is_cut_off_at_the_end(
    contract: Contract, only: type[Reconnecting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "CONTROL_S", 0.1)
    async with serving("2.51.0", held=True, only=only) as (server, triton):
        task = asyncio.create_task(triton.infer(images(), contract, in_s(20)))
        await asyncio.wait_for(server.began.wait(), 10)
        await triton.close()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()
