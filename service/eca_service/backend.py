"""The way to Triton: which servers there are, what they have loaded, and images to them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from eca_service.contract import PROBABILITIES, Contract, damage
from eca_service.errors import ServiceError
from eca_service.infer_request import with_pixels, with_place
from eca_service.resolver import Resolver, target
from eca_service.sharing import CONTROL_S, Sharing
from eca_service.triton.failures import passes, translated
from eca_service.triton.model import batches_at_once, config, require_as_agreed, shapes

logger = logging.getLogger(__name__)
Metadata = Sequence[tuple[str, str]]
MAX_MESSAGE_BYTES = 512 << 20
PROBE_S = 0.5
HOPELESS_S = 30.0
LOAD_S = 600.0
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
OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # while calls wait, a server that was cut off without a word is noticed in three seconds
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),  # gRPC's own 256 KiB holds one image: larger batches would not retry
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
]
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Before, a call that is cancelled as it is answered can end the server:
# https://github.com/triton-inference-server/server/issues/8034
CANCELS_SAFELY = (2, 58)


class Triton:
    """One channel for inference to all servers that `urls` stand for now, one to each for control.

    gRPC's own resolver asks for addresses again only when a connection breaks, and so would not find a server that was
    added: they are looked up here. A server gets images once it has all models that the others have.
    """

    def __init__(self, urls: str, same_host: bool = False) -> None:
        """`same_host`: the one server sees this machine's /dev/shm, through which tensors then travel."""
        self._resolver = Resolver(urls)
        self._clients: dict[str, triton.InferenceServerClient] = {}
        self._loaded: dict[str, set[str]] = {}  # names of the models that each address has
        self._failures: dict[str, str] = {}
        self._again: dict[
            str, float
        ] = {}  # when one that cannot have a model is worth another try, by the loop's clock
        self._serving: frozenset[str] = frozenset()
        self._cancels: set[str] = set()  # addresses of servers whose calls may be cancelled
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._sharing = Sharing(same_host and len(self._resolver.urls) == 1)

    async def close(self) -> None:
        """Closes all channels; calls that still run after CONTROL_S are cut off."""
        for task in self._closing:
            task.cancel()
        if self._channel:
            await self._channel.close(CONTROL_S)  # what callers have left may still be answered
        await self._sharing.end(self._clients.values())
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def look(self) -> bool:
        """Asks which servers there are now; True where one that gets no images yet answers, and so can be loaded.

        Those that have left get nothing more.
        """
        addresses = await self._resolver.addresses()
        for address in addresses - self._clients.keys():
            self._clients[address] = triton.InferenceServerClient(address, channel_args=OPTIONS[:-1])
        for address in self._clients.keys() - addresses:
            self._loaded.pop(address, None)
            self._end(self._clients.pop(address).close())
        self._connect()
        now = asyncio.get_running_loop().time()
        idle = [a for a in self._clients.keys() - self._serving if now >= self._again.get(a, 0)]
        return any(await asyncio.gather(*map(self._answers, idle)))

    async def load(self, contract: Contract, home: Path, versions: Collection[int]) -> int:
        """Has `versions`, the contract's among them, loaded in every server that lacks one; `home` has config.pbtxt.

        Returns how many batches the servers run at once. Raises ServiceError where none has the version, or one that
        serves cannot have it, or has another model of that name. Whoever else fails gets no images until it succeeds.
        """
        clients = await self._known()
        outcomes = await asyncio.gather(
            *(self._load(client, contract, home, versions) for client in clients.values()), return_exceptions=True
        )
        slots = {address: had for address, had in zip(clients, outcomes, strict=True) if isinstance(had, int)}
        failures = {a: error for a, error in zip(clients, outcomes, strict=True) if isinstance(error, BaseException)}
        serious = [error for address, error in failures.items() if not passes(error) and address in self._serving]
        if serious or not slots:
            raise (serious or sorted(failures.values(), key=passes))[0]
        for address, error in failures.items():
            self._loaded.pop(address, None)
            if self._failures.get(address) != str(error):
                logger.warning("the Triton at %s gets no images: %s", address, error)
            self._failures[address] = str(error)
            self._again[address] = 0 if passes(error) else asyncio.get_running_loop().time() + HOPELESS_S
        for address in slots:
            self._loaded.setdefault(address, set()).add(contract.name)
        self._connect()
        return sum(slots.values())

    async def keep(self, home: Path, versions: Collection[int]) -> None:
        """Has every server unload all versions of the model in `home` but these; an empty collection unloads it.

        Where that fails, the log says so.
        """
        for client in list(self._clients.values()):
            try:
                if versions:
                    await client.load_model(home.name, config=config(home, versions), client_timeout=LOAD_S)
                else:
                    await client.unload_model(home.name, client_timeout=LOAD_S)
            except (ServiceError, InferenceServerException, grpc.RpcError) as error:
                logger.warning("Triton keeps what %s no longer needs: %s", home.name, error)
        if not versions:
            for names in self._loaded.values():
                names.discard(home.name)

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
        if self._channel is None:
            raise ServiceError("backend_unavailable", "no Triton Inference Server has the models yet")
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
        if self._serving <= self._cancels:
            return await self._infer(request, timeout=_left_s(deadline), metadata=metadata)
        call = self._infer(request, timeout=LONGEST_CALL_S, metadata=metadata)
        ended = asyncio.Event()
        call.add_done_callback(lambda _: ended.set())
        try:
            await ended.wait()
        except asyncio.CancelledError:
            await ended.wait()
            raise
        return await call

    async def _known(self) -> dict[str, triton.InferenceServerClient]:
        if not self._clients:
            await self.look()
        if not self._clients:
            raise ServiceError("backend_unavailable", f"no address is known for {', '.join(self._resolver.urls)}")
        return dict(self._clients)

    async def _answers(self, address: str) -> bool:
        client = self._clients[address]
        try:
            if not await client.is_server_live(client_timeout=PROBE_S):
                return False
            version = (await client.get_server_metadata(client_timeout=PROBE_S)).version
        except (InferenceServerException, grpc.RpcError):
            return False
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        (self._cancels.add if numbers >= CANCELS_SAFELY else self._cancels.discard)(address)
        return True

    def _connect(self) -> None:
        """Makes the channel anew where other servers are to serve; where none would be left, it stays as it is."""
        names = set().union(*self._loaded.values())
        serving = frozenset(address for address, held in self._loaded.items() if held >= names)
        for address in serving:
            self._failures.pop(address, None)
        if not serving or serving == self._serving:
            return
        logger.info("images go to the Tritons at %s", ", ".join(sorted(serving)))
        if self._channel:
            self._end(self._channel.close(LONGEST_CALL_S))  # its calls end in peace; connections are shared
        self._serving = serving
        self._channel = grpc.aio.insecure_channel(target(serving), OPTIONS)
        # requests are written by hand, see `_encoded`
        self._infer = self._channel.unary_unary(INFER, None, service_pb2.ModelInferResponse.FromString)

    def _end(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _load(
        self, client: triton.InferenceServerClient, contract: Contract, home: Path, versions: Collection[int]
    ) -> int:
        name, version = contract.name, str(contract.version)
        await self._sharing.begin(client)
        try:
            for each in versions:
                if not await client.is_model_ready(name, str(each), client_timeout=CONTROL_S):
                    if reason := await asyncio.to_thread(damage, contract, home / version):
                        raise ServiceError("model_not_ready", reason)
                    await client.load_model(name, config=config(home, versions), client_timeout=LOAD_S)
                    break
            metadata = await client.get_model_metadata(name, version, client_timeout=CONTROL_S)
            answer = await client.get_model_config(name, version, client_timeout=CONTROL_S)
        except (InferenceServerException, grpc.RpcError) as error:
            raise translated(error, name) from None
        require_as_agreed(contract, metadata)
        return batches_at_once(answer.config)


def _left_s(deadline: float) -> float:
    return max(0.001, deadline - asyncio.get_running_loop().time())
