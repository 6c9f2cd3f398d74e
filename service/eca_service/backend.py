"""Images to Triton: the ways to all servers that get them, and the tensors that travel there and back."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from eca_service.contract import PROBABILITIES, Contract
from eca_service.errors import ServiceError
from eca_service.fleet import OPTIONS, Fleet
from eca_service.http2 import Metadata
from eca_service.infer_request import with_pixels, with_place
from eca_service.reconnecting import Reconnecting
from eca_service.resolver import target
from eca_service.sharing import CONTROL_S, Sharing
from eca_service.triton.failures import translated
from eca_service.triton.model import shapes

LONGEST_CALL_S = 600.0
# gRPC's own load balancing and retries: a call that a dying server did not answer goes to another. Its health checks
# need the streaming Watch, which Triton does not have: the connection's state and the golden answers stand for them.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND"],
            },
        }
    ],
}
CALL_OPTIONS: list[tuple[str, int | str]] = [
    *OPTIONS,
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),  # gRPC's own 256 KiB holds one image: larger batches would not retry
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
]
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Triton:
    """The way of images to the servers of `fleet` that serve; made anew, at the next call, where these are others."""

    def __init__(self, urls: str, same_host: bool = False) -> None:
        """`same_host`: the one server sees this machine's /dev/shm, through which tensors then travel."""
        self._sharing = Sharing(same_host and "," not in urls.strip(" ,"))
        self.fleet = Fleet(urls, self._sharing)
        self._serving: frozenset[str] = frozenset()
        self._only = Reconnecting(INFER)  # to a server that is alone
        self._channel: grpc.aio.Channel | None = None  # for several, and for what that one does not answer
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Closes all channels; calls that still run after CONTROL_S are cut off."""
        for task in self._closing:
            task.cancel()
        await self._only.close(CONTROL_S)  # what callers have left may still be answered
        if self._channel:
            await self._channel.close(CONTROL_S)
        await self.fleet.close()

    async def infer(
        self,
        images: Sequence[NDArray[np.uint8]],
        contract: Contract,
        deadline: float,
        further: tuple[str, ...] = (),
        metadata: Metadata = (),
    ) -> dict[str, NDArray[np.float32]]:
        """`probabilities` [N, K] for N images uint8 [H, W, 3], and the outputs named in `further`; all float32.

        `deadline` is of the event loop's clock, `metadata` travels with the call. A server that does not bear it is not
        told of the deadline, nor when this is cancelled: it ends its work first, so that its caller sends no more
        meanwhile. Raises deadline_exceeded, backend_unavailable, model_not_ready, internal.
        """
        if self.fleet.serving != self._serving:
            self._connect()
        if self._channel is None:
            raise ServiceError("backend_unavailable", "no Triton Inference Server has loaded the models yet")
        outputs = (PROBABILITIES, *further)
        try:
            answer = await self._infer_shared(images, contract, outputs, deadline, metadata)
            if answer is None:
                request = with_pixels(images, contract, outputs)
                answer = await self._call(request, deadline, metadata)
        except grpc.RpcError as error:
            raise translated(error, contract.name) from None
        by_name = shapes(contract)
        tensors = {}
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            # numpy's own array: the message's memory goes with the message
            values = np.frombuffer(raw, "<f4").copy()
            shape = (len(images), *by_name[output.name])
            if values.size != math.prod(shape):
                raise ServiceError("internal", f"Triton answered {values.size} {output.name} for {len(images)} images")
            tensors[output.name] = values.reshape(shape)
        return tensors

    async def _infer_shared(
        self,
        images: Sequence[NDArray[np.uint8]],
        contract: Contract,
        outputs: tuple[str, ...],
        deadline: float,
        metadata: Metadata,
    ) -> Any:
        """The answer to images that travel in shared memory; None where they have to travel in the message."""
        if (region := self._sharing.region) is None or (offset := region.lay(images)) is None:
            return None
        try:
            request = with_place(images, contract, outputs, region.name, offset)
            return await self._call(request, deadline, metadata)
        except grpc.RpcError as error:
            if region.name not in (error.details() or ""):
                raise
            self._sharing.region = None  # a server that was started again; `load` shares anew
            return None
        finally:
            region.free(offset)

    async def _call(self, request: bytes, deadline: float, metadata: Metadata) -> Any:
        if connection := self._only.usable():
            answer = await self._ended(connection.call(request, self._left_s(deadline), metadata))
            if answer is not None:
                return service_pb2.ModelInferResponse.FromString(answer)
        return await self._ended(self._infer(request, timeout=self._left_s(deadline), metadata=metadata))

    async def _ended(self, call: Any) -> Any:
        """What a call answers, once the server has ended its work where it may not be told to leave it."""
        if self.fleet.cancels:
            return await call
        ended = asyncio.Event()
        call.add_done_callback(lambda _: ended.set())
        try:
            await ended.wait()
        except asyncio.CancelledError:
            await ended.wait()
            raise
        return await call

    def _left_s(self, deadline: float) -> float:
        """Seconds that a call is given."""
        left = deadline - asyncio.get_running_loop().time() if self.fleet.cancels else LONGEST_CALL_S
        return max(0.001, left)

    def _connect(self) -> None:
        if self._channel:  # its calls end in peace; connections are shared
            task = asyncio.create_task(self._channel.close(LONGEST_CALL_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._serving = self.fleet.serving
        self._only.to(next(iter(self._serving)) if len(self._serving) == 1 else None)
        self._channel = grpc.aio.insecure_channel(target(self._serving), CALL_OPTIONS)
        # requests are written by hand, see `infer_request`
        self._infer = self._channel.unary_unary(INFER, None, service_pb2.ModelInferResponse.FromString)
