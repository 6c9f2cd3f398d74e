"""A server that says it is a Triton, of any version, and fails when it is told to: one binary is all we have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from eca_service.backend import INFER, Triton
from eca_service.http2 import Connection
from eca_service.reconnecting import Reconnecting
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.load import noop


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each image with its own first byte, over and over; where it is `held`, when `answer` is set.

    `requests` are those that came, `seen` is what became of its calls. `refusals` are the statuses of the next ones,
    where OK is none, and SILENCE no answer. Its model is tests.load.noop's.
    """

    def __init__(self, version: str, held: bool) -> None:
        self.url = ""
        self.version = version
        self.sizes = {"probabilities": noop.CLASSES, "features": 2 * 3 * 3}  # of an image
        self.began, self.answer = asyncio.Event(), asyncio.Event()
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.requests: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.left_s: list[float] = []
        self.refusals: list[str] = []
        self.regions: dict[str, NDArray[np.uint8]] = {}
        self.live = True
        self.loaded: set[str] = set()  # versions
        if not held:
            self.answer.set()

    async def ServerLive(self, *_: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=self.live)

    async def ServerMetadata(self, *_: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    async def ModelReady(self, request: Any, _: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.version in self.loaded)

    async def ModelMetadata(self, *_: Any) -> Any:
        answer = service_pb2.ModelMetadataResponse(name=noop.NAME)
        answer.inputs.add(name="image", datatype="UINT8", shape=[-1, noop.CROP, noop.CROP, 3])
        answer.outputs.add(name="probabilities", datatype="FP32", shape=[-1, noop.CLASSES])
        return answer

    async def ModelConfig(self, *_: Any) -> Any:
        return service_pb2.ModelConfigResponse()

    async def RepositoryModelLoad(self, request: Any, _: Any) -> Any:
        self.began.set()
        await self.answer.wait()
        policy = json.loads(request.parameters["config"].string_param)["version_policy"]
        self.loaded = set(policy["specific"]["versions"])
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, *_: Any) -> Any:
        self.began.set()
        await self.answer.wait()
        self.loaded = set()
        return service_pb2.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(self, _: Any, context: Any) -> Any:
        await self._refuse(context)
        answer = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            answer.regions[name].name = name
        return answer

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        await self._refuse(context)
        self.regions[request.name] = np.memmap(f"/dev/shm{request.key}", np.uint8, "r", 0, (request.byte_size,))
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        await self._refuse(context)
        del self.regions[request.name]
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.left_s.append(context.time_remaining() or 0)
        self.began.set()
        await self._refuse(context)
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.seen.put_nowait("cancelled")
            raise
        self.seen.put_nowait("answered")
        (tensor,) = request.inputs
        values = (await self._pixels(request, context)).reshape(tensor.shape)[:, 0, 0, :1].astype("<f4")
        answer = service_pb2.ModelInferResponse()
        for output in request.outputs:
            answer.outputs.add(name=output.name)
            answer.raw_output_contents.append(np.repeat(values, self.sizes[output.name], 1).tobytes())
        return answer

    async def _refuse(self, context: Any) -> None:
        status = self.refusals.pop(0) if self.refusals else "OK"
        if status == "SILENCE":
            await asyncio.Event().wait()
        if status != "OK":
            await context.abort(grpc.StatusCode[status], "not now")

    async def _pixels(self, request: Any, context: Any) -> NDArray[np.uint8]:
        place = request.inputs[0].parameters
        if not place:
            return np.frombuffer(request.raw_input_contents[0], np.uint8)
        name, start = place["shared_memory_region"].string_param, place["shared_memory_offset"].int64_param
        if name not in self.regions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        return self.regions[name][start : start + place["shared_memory_byte_size"].int64_param]


@asynccontextmanager
async def listening(version: str = "2.58.0", *, held: bool = False) -> AsyncIterator[Server]:
    """A server of that version."""
    options = [("grpc.max_receive_message_length", -1)]
    server, ours = grpc.aio.server(options=options), Server(version, held)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(ours, server)
    ours.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield ours
    finally:
        ours.answer.set()
        await server.stop(None)


class Never(Reconnecting):
    """Leaves all calls to gRPC's own client."""

    def usable(self) -> Connection | None:
        """None, always."""
        return None


async def connected(triton: Triton) -> None:
    """Our way to what serves is there: by an HTTP/2 connection of our own, if the Triton may have one."""
    triton._connect()
    assert triton._channel is not None
    await triton._channel.channel_ready()  # a port of another test's server may be one that gRPC waits before it tries
    while not triton._only.usable() and len(triton.fleet.serving) == 1 and not isinstance(triton._only, Never):
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    version: str = "2.58.0", *, held: bool = False, same_host: bool = False, only: type[Reconnecting] = Reconnecting
) -> AsyncIterator[tuple[Server, Triton]]:
    """A server of that version, and our way to it, by `only`."""
    async with listening(version, held=held) as ours:
        triton = Triton(ours.url, same_host)
        triton._only = only(INFER)
        await triton.fleet.look()
        triton.fleet.serving = frozenset({ours.url})
        await connected(triton)
        try:
            yield ours, triton
        finally:
            ours.answer.set()
            await triton.close()
