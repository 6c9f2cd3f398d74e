"""One way to call the service over each of its protocols, so that a test can run on all of them."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.conftest import Service

PROTOCOLS = ("rest", "oip-json", "oip-binary", "grpc")


@dataclass
class Reply:
    """`code` is `ok` or an error's; `rows` holds (index, label, score) of each image's predictions, or its error.

    `headers` are HTTP's headers or gRPC's trailing metadata.
    """

    code: str
    rows: list[list[tuple[int, str, float]] | str]
    headers: dict[str, str] = field(default_factory=dict)


def call(
    protocol: str,
    service: Service,
    model: str,
    images: list[bytes],
    top_k: int = 3,
    timeout_ms: float | None = None,
    version: int | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """Classifies `images` in one request, with `headers`, in lower case, as HTTP's headers or gRPC's metadata."""
    if protocol == "grpc":
        return _grpc(service, model, images, top_k, timeout_ms, version, headers or {})
    place = f"/models/{model}" + (f"/versions/{version}" if version else "")
    headers = dict(headers or {}) | ({} if timeout_ms is None else {"x-request-timeout-ms": str(timeout_ms)})
    if protocol == "rest":
        listed = {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}
        answer = service.ask("POST", f"/v1{place}/classify", params={"top_k": top_k}, json=listed, headers=headers)
        if answer.status_code != 200:
            return _refused(answer)
        return Reply("ok", [_rest_row(row) for row in answer.json()["results"]], dict(answer.headers))
    tensor: dict[str, Any] = {"name": "image", "shape": [len(images)], "datatype": "BYTES"}
    body = {"inputs": [tensor], "parameters": {"top_k": top_k}}
    url = f"/v2{place}/infer"
    if protocol == "oip-json":
        tensor["data"] = [base64.b64encode(image).decode() for image in images]
        answer = service.ask("POST", url, json=body, headers=headers)
        if answer.status_code != 200:
            return _refused(answer)
        assert answer.headers["content-type"] == "application/json"
        outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        k = answer.json()["outputs"][0]["shape"][1]
        columns = [np.array(outputs[name], object).reshape(-1, k) for name in ("index", "label", "score")]
        return Reply("ok", _rows(*columns), dict(answer.headers))
    given = triton_http.InferInput("image", [len(images)], "BYTES")
    given.set_data_from_numpy(np.array(images, object))
    data, length = triton_http.InferenceServerClient.generate_request_body([given], parameters={"top_k": top_k})
    headers |= {"inference-header-content-length": str(length)}
    answer = service.ask("POST", url, content=bytes(data), headers=headers)
    if answer.status_code != 200:
        return _refused(answer)
    header_length = int(answer.headers["inference-header-content-length"])
    result = triton_http.InferenceServerClient.parse_response_body(answer.content, header_length=header_length)
    labels = np.vectorize(bytes.decode, otypes=[object])(result.as_numpy("label"))
    return Reply("ok", _rows(result.as_numpy("index"), labels, result.as_numpy("score")), dict(answer.headers))


def infer_request(model: str, images: list[bytes], top_k: int = 3, version: int | None = None) -> Any:
    """The gRPC message for `images`."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=str(version or ""))
    request.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    request.parameters["top_k"].int64_param = top_k
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(image)) + image for image in images))
    return request


def _refused(answer: httpx.Response) -> Reply:
    return Reply(answer.json()["code"], [], dict(answer.headers))


def _grpc(
    service: Service,
    model: str,
    images: list[bytes],
    top_k: int,
    timeout_ms: float | None,
    version: int | None,
    headers: dict[str, str],
) -> Reply:
    metadata = [pair for pair in service.metadata if pair[0] not in headers] + list(headers.items())
    with service.channel() as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        timeout_s = 60 if timeout_ms is None else timeout_ms / 1000
        request = infer_request(model, images, top_k, version)
        try:
            answer, call = stub.ModelInfer.with_call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            return Reply(str(trailing.get("eca-code", error.code().name.lower())), [], trailing)
    raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
    shape = list(answer.outputs[0].shape)
    texts, at = [], 0
    while at < len(raw["label"]):
        (length,) = struct.unpack_from("<I", raw["label"], at)
        texts.append(raw["label"][at + 4 : at + 4 + length].decode())
        at += 4 + length
    index, score = np.frombuffer(raw["index"], "<i4"), np.frombuffer(raw["score"], "<f4")
    rows = _rows(index.reshape(shape), np.array(texts, object).reshape(shape), score.reshape(shape))
    return Reply("ok", rows, dict(call.trailing_metadata()))


def _rest_row(row: dict[str, Any]) -> list[tuple[int, str, float]] | str:
    if "error" in row:
        return str(row["error"]["code"])
    return [(p["index"], p["label"], p["score"]) for p in row["predictions"]]


def _rows(index: Any, label: Any, score: Any) -> list[list[tuple[int, str, float]] | str]:
    rows: list[list[tuple[int, str, float]] | str] = []
    for indices, labels, scores in zip(index, label, score, strict=True):
        if indices[0] == -1:
            rows.append(str(labels[0]).split(": ")[1])
        else:
            rows.append([(int(i), str(n), float(s)) for i, n, s in zip(indices, labels, scores, strict=True)])
    return rows
