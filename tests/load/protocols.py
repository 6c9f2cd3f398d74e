"""The ways to ask: the gateway over HTTP, the gateway over gRPC, Triton directly. Requests are made beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import grpc
import httptools
import numpy as np
from eca_service.contract import Preprocessing
from eca_service.http2 import Connection
from eca_service.imaging import decode
from tritonclient.grpc import service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # whatever http_proxy says: the way through it would be measured
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each channel
]
PATIENCE_S = 600.0
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Reply:
    """`code` is `ok` or what went wrong; the stages' milliseconds as the service tells them, where it does."""

    code: str
    stages: dict[str, float] = field(default_factory=dict)


class Way(ABC):
    """One protocol to one service; `send` asks `model` about image number `image`."""

    @abstractmethod
    async def send(self, model: str, image: int) -> Reply:
        """The reply; it raises nothing but CancelledError."""

    @abstractmethod
    async def close(self) -> None:
        """Ends all connections."""


class Http(Way):
    """Raw image bytes to POST /v1/models/{model}/classify, over connections that are kept and opened as needed."""

    def __init__(self, url: str, images: Sequence[bytes], path: str = "/v1/models/{model}/classify") -> None:
        self._host, self._port = host_and_port(url)
        self._images = images
        self._path = path
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def send(self, model: str, image: int) -> Reply:
        body = self._images[image]
        head = (
            f"POST {self._path.format(model=model)} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        try:
            connection = self._kept() or await self._connect()
        except OSError as error:
            return Reply(f"connection: {error.strerror}")
        try:
            reply = await connection.ask(head, body)
        except BaseException:
            connection.abort()
            self._all.discard(connection)
            raise
        if connection.open:
            self._idle.append(connection)
        else:
            self._all.discard(connection)
        return reply

    def _kept(self) -> _Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
            self._all.discard(connection)
        return None

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        self._all.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._all:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._waiting: asyncio.Future[Reply] | None = None

    async def ask(self, head: bytes, body: bytes) -> Reply:
        if not self.open:
            return Reply("connection: closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._stages: dict[str, float] = {}
        self._transport.writelines([head, body])
        return await self._waiting

    def abort(self) -> None:
        if self.open:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._finish(Reply("connection: lost"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish(Reply("no http"))
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._stages |= stages_of(value.decode("latin-1"))

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self.open = self._parser.should_keep_alive()
        self._finish(Reply("ok" if status == 200 else f"http {status}", self._stages))

    def _finish(self, reply: Reply) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(reply)


class Grpc(Way):
    """Requests of the Open Inference Protocol, encoded once for each model and number; connections take turns."""

    def __init__(self) -> None:
        self._encoded: dict[tuple[str, int], bytes] = {}
        self._turn = 0

    @abstractmethod
    def encode(self, model: str, image: int) -> bytes:
        """The serialised ModelInferRequest."""

    @abstractmethod
    async def ask(self, turn: int, request: bytes) -> Reply:
        """The reply to one request, over the connection whose turn it is."""

    async def send(self, model: str, image: int) -> Reply:
        key = (model, image)
        if key not in self._encoded:
            self._encoded[key] = self.encode(model, image)
        self._turn += 1
        try:
            return await self.ask(self._turn, self._encoded[key])
        except grpc.aio.AioRpcError as error:
            return Reply(f"grpc {error.code().name}")


class GatewayGrpc(Grpc):
    """Encoded images to the gateway, by gRPC's client."""

    def __init__(self, address: str, images: Sequence[bytes], connections: int = 1) -> None:
        super().__init__()
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(connections)]
        self._calls = [channel.unary_unary(INFER, None, None) for channel in self._channels]
        self._images = images

    def encode(self, model: str, image: int) -> bytes:
        data = self._images[image]
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="image", datatype="BYTES", shape=[1])
        request.parameters["top_k"].int64_param = 5
        request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
        encoded: bytes = request.SerializeToString()
        return encoded

    async def ask(self, turn: int, request: bytes) -> Reply:
        call = self._calls[turn % len(self._calls)](request)
        await call
        trailing = dict(await call.trailing_metadata() or ())
        return Reply("ok", stages_of(str(trailing.get("server-timing", ""))))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


class TritonGrpc(Grpc):
    """Tensors to Triton, over connections as the gateway's: the images already decoded by the recipe, `batch` of them a
    request.
    """

    def __init__(
        self, address: str, images: Sequence[bytes], recipe: Preprocessing, batch: int = 1, connections: int = 1
    ) -> None:
        super().__init__()
        self._host, self._port = host_and_port(address)
        self._connections: list[Connection | None] = [None] * connections
        self._made: list[Connection] = []  # two may be made for one place
        self._pixels = [decode(one, recipe, 1 << 28).pixels for one in images[:16]]
        self._batch = batch

    def encode(self, model: str, image: int) -> bytes:
        rows = np.stack([self._pixels[(image + i) % len(self._pixels)] for i in range(self._batch)])
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="image", datatype="UINT8", shape=rows.shape)
        request.outputs.add(name="probabilities")
        request.raw_input_contents.append(rows.tobytes())
        encoded: bytes = request.SerializeToString()
        return encoded

    async def ask(self, turn: int, request: bytes) -> Reply:
        place = turn % len(self._connections)
        connection = self._connections[place]
        if connection is None or not connection.usable:
            how = partial(Connection, self._host, INFER)
            try:
                _, connection = await asyncio.get_running_loop().create_connection(how, self._host, self._port)
            except OSError as error:
                return Reply(f"connection: {error.strerror}")
            self._connections[place] = connection
            self._made.append(connection)
        answer = await connection.call(request, PATIENCE_S)
        return Reply("ok" if answer is not None else "grpc: no answer")

    async def close(self) -> None:
        for connection in self._made:
            await connection.close(0)


def stages_of(header: str) -> dict[str, float]:
    """Milliseconds by stage, from a Server-Timing header; what proxies add to it need not be of ours."""
    found: dict[str, float] = {}
    for part in header.split(","):
        name, *others = (one.strip() for one in part.split(";"))
        for other in others:
            key, _, value = other.partition("=")
            with contextlib.suppress(ValueError):
                found |= {name: float(value)} if key == "dur" else {}
    return found


def host_and_port(url: str) -> tuple[str, int]:
    """Of `http://HOST:PORT` or `HOST:PORT`. Raises ValueError for anything else: load is sent nowhere by mistake."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    if parts.scheme == "https":
        raise ValueError(f"{url}: the load is sent without TLS; name the address of a service that has none")
    host, _, port = parts.netloc.rpartition(":")
    if parts.scheme not in ("", "http") or not host or not port.isdecimal() or parts.path not in ("", "/"):
        raise ValueError(f"{url} is neither http://HOST:PORT nor HOST:PORT")
    return host.strip("[]"), int(port)


def require_loopback(url: str, target: str | None = None) -> None:
    """Raises ValueError where `url` leads to another machine than this, and `target` does not name it once more."""
    host, _ = host_and_port(url)
    if host not in LOOPBACK and host != target:
        raise ValueError(f"{url} is another machine; name it with --target to send load there")
