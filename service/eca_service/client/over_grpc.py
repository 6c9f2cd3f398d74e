"""Calls over gRPC, by the Open Inference Protocol: classification and readiness."""

from __future__ import annotations

import json
import os
import ssl
import struct
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from eca_service.client.address import is_loopback, shown
from eca_service.client.calls import Call
from eca_service.client.failures import ClientError, understood

T = TypeVar("T")


class Grpc:
    """One channel, for one thread or many."""

    def __init__(self, url: str, key: str | None, ca: Path | None) -> None:
        self._url = shown(url)
        self._key = key
        self._channel = _channel(grpc, url, ca)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, call: Call[T], left_s: float) -> T:
        """What the answer says, as HTTP's. Raises ClientError."""
        method, request = _request(call)
        try:
            answer, done = getattr(self._stub, method).with_call(request, timeout=left_s, metadata=_metadata(self._key))
        except grpc.RpcError as error:
            raise _translated(self._url, error) from None
        with understood(self._url):
            return call.read(_body(call, answer, done.trailing_metadata()))

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class AsyncGrpc:
    """The same in an event loop."""

    def __init__(self, url: str, key: str | None, ca: Path | None) -> None:
        self._url = shown(url)
        self._key = key
        self._channel = _channel(grpc.aio, url, ca)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ask(self, call: Call[T], left_s: float) -> T:
        """What the answer says, as HTTP's. Raises ClientError."""
        method, request = _request(call)
        running = getattr(self._stub, method)(request, timeout=left_s, metadata=_metadata(self._key))
        try:
            answer, trailing = await running, await running.trailing_metadata()
        except grpc.RpcError as error:
            raise _translated(self._url, error) from None
        with understood(self._url):
            return call.read(_body(call, answer, trailing))

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _channel(library: Any, url: str, ca: Path | None) -> Any:
    """A channel to `url`, of grpc or of grpc.aio."""
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", int(not is_loopback(url))),
    ]
    scheme, _, target = url.partition("://")
    if scheme != "grpcs":
        return library.insecure_channel(target, options)
    try:
        credentials = grpc.ssl_channel_credentials(_authorities(ca))
    except OSError as error:
        raise ClientError("untrusted", f"{ca} holds no certificate in PEM ({error})") from None
    return library.secure_channel(target, credentials, options)


def _authorities(ca: Path | None) -> bytes | None:
    """In PEM: those of the file, else the system's, as over HTTP; None where they are in no file: gRPC's own.

    Raises OSError where `ca` holds none, of which gRPC would say that nobody answers.
    """
    if ca:
        ssl.create_default_context(cafile=ca)
    trusted = ca or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or ssl.get_default_verify_paths().cafile
    return Path(trusted).read_bytes() if trusted else None


def _metadata(key: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


def _request(call: Call[Any]) -> tuple[str, Any]:
    if call.route == "ready":
        return "ServerReady", service_pb2.ServerReadyRequest()
    if call.route != "classify":
        raise ClientError("unsupported", f"gRPC has no call {call.route!r}; use the service's HTTP address")
    version = "" if call.version is None else str(call.version)
    request = service_pb2.ModelInferRequest(model_name=call.model or "", model_version=version)
    request.inputs.add(name="image", datatype="BYTES", shape=[len(call.images)])
    for name, value in call.parameters.items():
        try:
            request.parameters[name].int64_param = int(value)
        except ValueError:  # no number, or one that the protocol cannot carry: the service says so
            request.parameters[name].string_param = value
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(image)) + image for image in call.images))
    return "ModelInfer", request


def _body(call: Call[Any], answer: Any, trailing: Any) -> dict[str, Any]:
    if call.route == "ready":
        return {"reasons": {} if answer.ready else {"service": "it is not ready; its /readyz says why"}}
    raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
    shape = tuple(answer.outputs[0].shape)
    index = np.frombuffer(raw["index"], "<i4").reshape(shape).tolist()
    score = np.frombuffer(raw["score"], "<f4").reshape(shape).tolist()
    labels = _texts(raw["label"])
    told_of = answer.parameters["warnings"].string_param if "warnings" in answer.parameters else ""
    warnings = json.loads(told_of) if told_of else [[]] * shape[0]
    rows: list[dict[str, Any]] = []
    for number, (indices, scores) in enumerate(zip(index, score, strict=True)):
        named = labels[number * shape[1] : (number + 1) * shape[1]]
        if indices[0] == -1:  # how the protocol's answer says that this image failed
            _, code, detail = named[0].split(": ", 2)
            rows.append({"error": {"code": code, "detail": detail}})
            continue
        found = zip(indices, named, scores, strict=True)
        predictions = [{"index": i, "label": label, "score": s} for i, label, s in found]
        rows.append({"predictions": predictions, "warnings": warnings[number]})
    told = {key: value for key, value in trailing or () if isinstance(value, str)}
    stages = (stage.split(";dur=") for stage in told.get("server-timing", "").split(", ") if ";dur=" in stage)
    return {
        "model": answer.model_name,
        "version": int(answer.model_version),
        "request_id": told.get("x-request-id", ""),
        "results": rows,
        "timing_ms": {stage: float(spent) for stage, spent in stages},
    }


def _texts(raw: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        texts.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return texts


def _translated(url: str, error: Any) -> ClientError:
    told = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    detail = error.details() or "no reason given"
    if code := told.get("eca-code"):
        after = told.get("retry-after", "")
        return ClientError(
            code,
            detail.removeprefix(f"{code}: "),
            retry_after_s=float(after) if after.isdecimal() else None,
            request_id=told.get("x-request-id"),
        )
    status = error.code().name
    if status == "DEADLINE_EXCEEDED":
        return ClientError("deadline_exceeded", f"{url} did not answer in time")
    if status == "UNAVAILABLE" and "CERTIFICATE_VERIFY_FAILED" in detail:
        return ClientError("untrusted", f"the certificate of {url} is not trusted ({detail}); see --ca")
    if status == "UNAVAILABLE":
        return ClientError("unreachable", f"no service answers at {url} ({detail}); `eca-serve up` starts one")
    if status == "RESOURCE_EXHAUSTED":
        return ClientError("body_too_large", detail)
    return ClientError("not_the_service", f"what answers at {url} is not this service ({status}: {detail})")
