"""Only a Triton that bears it is told that a caller has gone. The servers here are made: one binary is all we have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from eca_service.backend import LONGEST_CALL_S, Triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.load import noop

IMAGES = [np.zeros((noop.CROP, noop.CROP, 3), np.uint8)]


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Says that it is Triton `version`, and answers when `answer` is set; `seen` is what became of its calls."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.began, self.answer = asyncio.Event(), asyncio.Event()
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.left_s: list[float] = []

    async def ServerLive(self, *_: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerMetadata(self, *_: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    async def ModelInfer(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        self.left_s.append(context.time_remaining() or 0)
        self.began.set()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.seen.put_nowait("cancelled")
            raise
        self.seen.put_nowait("answered")
        answer = service_pb2.ModelInferResponse(raw_output_contents=[bytes(4 * noop.CLASSES)])
        answer.outputs.add(name="probabilities")
        return answer


@asynccontextmanager
async def serving(version: str) -> AsyncIterator[tuple[Server, Triton]]:
    """A server of that version, and our way to it."""
    server, ours = grpc.aio.server(), Server(version)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(ours, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    triton = Triton(f"127.0.0.1:{port}")
    await triton.fleet.look()
    triton.fleet.serving = frozenset({f"127.0.0.1:{port}"})
    try:
        yield ours, triton
    finally:
        ours.answer.set()
        await triton.close()
        await server.stop(None)


@pytest.mark.parametrize(("version", "told"), [("2.51.0", False), ("2.57.1", False), ("2.58.0", True), ("3.0", True)])
async def test_who_is_told_that_a_caller_has_gone(tmp_path: Path, version: str, told: bool) -> None:
    contract = noop.publish(tmp_path)
    async with serving(version) as (server, triton):
        deadline = asyncio.get_running_loop().time() + 20
        task = asyncio.create_task(triton.infer(IMAGES, contract, deadline))
        await server.began.wait()
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


async def test_an_answer_is_an_answer(tmp_path: Path) -> None:
    contract = noop.publish(tmp_path)
    for version in ("2.51.0", "2.74.0"):
        async with serving(version) as (server, triton):
            server.answer.set()
            answer = await triton.infer(IMAGES, contract, asyncio.get_running_loop().time() + 20)
            assert answer["probabilities"].shape == (1, noop.CLASSES)
