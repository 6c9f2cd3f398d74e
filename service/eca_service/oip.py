"""The Open Inference Protocol v2, as both its HTTP and its gRPC form need it: metadata, tensors, one inference.

https://github.com/open-inference/open-inference-protocol/tree/main/specification/protocol
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2, service_pb2

from eca_service.admission import require_few
from eca_service.answers import Answer
from eca_service.batching import Totals
from eca_service.contract import INPUT, Contract
from eca_service.errors import ServiceError
from eca_service.numerals import whole
from eca_service.query import require_no_option

PLATFORM = "eca-serve"
OUTPUTS = {"label": "BYTES", "index": "INT32", "score": "FP32"}
TOLD = 100  # characters of what a caller wrote: to quote megabytes takes four times as many
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output: `values` is uint8 / int32 / float32 [N, k], or rows of encoded texts for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, int]
    values: Any

    def raw(self) -> bytes:
        """Little-endian, row-major; each text behind its length in four bytes."""
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(text)) + text for row in self.values for text in row)
        data: bytes = self.values.tobytes()
        return data

    def flat(self) -> list[Any]:
        """The values for JSON, row-major."""
        if self.datatype == "BYTES":
            return [text.decode() for row in self.values for text in row]
        numbers: list[Any] = self.values.ravel().tolist()
        return numbers


def server_metadata() -> dict[str, Any]:
    """Name, version, extensions."""
    return {"name": PLATFORM, "version": version("eca-serve"), "extensions": EXTENSIONS}


def model_metadata(contract: Contract) -> dict[str, Any]:
    """The tensors of a model: -1 stands for the number of images, and for top_k."""
    return {
        "name": contract.name,
        "versions": [str(contract.version)],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1, -1]} for name, datatype in OUTPUTS.items()],
    }


def model_config(contract: Contract) -> model_config_pb2.ModelConfig:
    """What load generators ask for before they start."""
    config = model_config_pb2.ModelConfig(name=contract.name, platform=PLATFORM, max_batch_size=0)
    config.input.add(name=INPUT, data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    kinds = {"BYTES": "TYPE_STRING", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
    for name, datatype in OUTPUTS.items():
        config.output.add(name=name, data_type=getattr(model_config_pb2, kinds[datatype]), dims=[-1, -1])
    return config


def statistics(counted: Iterable[tuple[Contract, Totals]]) -> service_pb2.ModelStatisticsResponse:
    """What this process has counted since it started; times in nanoseconds, summed over requests."""
    found = service_pb2.ModelStatisticsResponse()
    for contract, totals in counted:
        stats = found.model_stats.add(
            name=contract.name,
            version=str(contract.version),
            inference_count=totals.images,
            execution_count=totals.batches,
            last_inference=int(1000 * totals.last_s),
        )
        for field, count, seconds in (
            ("success", totals.answered, totals.queue_s + totals.infer_s),
            ("fail", totals.failed, 0.0),
            ("queue", totals.answered, totals.queue_s),
            ("compute_input", totals.answered, 0.0),  # within compute_infer; perf_analyzer wants all three of one count
            ("compute_infer", totals.answered, totals.infer_s),
            ("compute_output", totals.answered, 0.0),
        ):
            duration = getattr(stats.inference_stats, field)
            duration.count, duration.ns = count, int(1e9 * seconds)
    return found


def as_json(message: Any) -> dict[str, Any]:
    """A protobuf message as Triton writes it: the field names of its definition, and 64-bit numbers as numbers."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(found, message.DESCRIPTOR)


def _numbers(found: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """protobuf's own JSON has 64-bit numbers as texts."""
    return {key: _number(value, descriptor.fields_by_name[key]) for key, value in found.items()}


def _number(value: Any, field: Any) -> Any:
    if isinstance(value, list):
        return [_number(each, field) for each in value]
    if isinstance(value, dict):  # a message; or a map, all of which are empty here
        return _numbers(value, field.message_type)
    wide = field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_UINT64}
    return int(value) if wide and isinstance(value, str) else value


def require_input(name: str, datatype: str, shape: Sequence[int], most: int) -> int:
    """The number of images that an input tensor announces, at most `most`. Raises bad_request where it is not ours."""
    if name != INPUT:
        raise ServiceError("bad_request", f"there is no input {name[:TOLD]!r}; the input is {INPUT!r}")
    if datatype != "BYTES":
        raise ServiceError("bad_request", f"{INPUT} has datatype {datatype[:TOLD]!r}; it is BYTES: encoded images")
    if not shape or shape[0] < 1 or list(shape[1:]) not in ([], [1]):
        raise ServiceError("bad_request", f"{INPUT} has shape {list(shape)}; it is [number of images]")
    require_few(shape[0], most)
    return int(shape[0])


def require_outputs(names: Sequence[str]) -> list[str]:
    """The outputs wanted: all where none is named. Raises bad_request for an unknown one, or one that is named twice.

    Each named once more would be one answer more.
    """
    for name in names:
        if name not in OUTPUTS:
            raise ServiceError("bad_request", f"there is no output {name[:TOLD]!r}; there are: {', '.join(OUTPUTS)}")
    if len(set(names)) < len(names):
        raise ServiceError("bad_request", "an output is named twice")
    return list(names) or list(OUTPUTS)


def require_plain(tensor: str, parameters: Container[str]) -> None:
    """Raises bad_parameter where a tensor's parameters ask for an extension of Triton's that the service has not.

    Not told, a caller would look for the answer in its shared memory, or take scores for Triton's texts of classes.
    """
    if "shared_memory_region" in parameters:
        raise ServiceError("bad_parameter", f"{tensor} asks for shared memory; send tensors in the message")
    if "classification" in parameters:
        raise ServiceError(
            "bad_parameter", f"{tensor} asks for Triton's classification; use the parameter top_k instead"
        )


def require_parameters(names: Iterable[str]) -> None:
    """Raises bad_request where top_k, the one parameter that a request may have, is misspelt, or another is meant."""
    require_no_option((name for name in names if name != "top_k"), "in the request's parameters")


def require_version(given: str) -> int | None:
    """A version as a number, None where none is given. Raises version_not_found where it is no number."""
    if not given:
        return None
    version = whole(given)
    if version is None:
        raise ServiceError("version_not_found", f"there is no version {given[:20]!r}; versions are numbers from 1 on")
    return version


def unpack(raw: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` byte strings of a BYTES tensor, each behind its length in four little-endian bytes."""
    view, images, at = memoryview(raw), [], 0
    for _ in range(count):
        if at + 4 > len(view):
            break
        (length,) = struct.unpack_from("<I", view, at)
        images.append(bytes(view[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(images) != count or at != len(view):
        raise ServiceError(
            "bad_request", f"the {len(view)} bytes of {INPUT} do not hold {count} length-prefixed images"
        )
    return images


def warnings(answer: Answer) -> str:
    """What was done to the images, as JSON: a list for each; empty where nothing was."""
    told = [result.warnings for result in answer.results]
    return json.dumps(told) if any(told) else ""


def tensors(answer: Answer, top_k: int, names: Sequence[str]) -> list[Tensor]:
    """The outputs named. An image that failed among others has index -1, score 0, and its error as the label.

    Raises the image's own error where it is the only one.
    """
    if len(answer.results) == 1 and (error := answer.results[0].error):
        raise error.anew()
    shape = (len(answer.results), top_k)
    index = np.full(shape, -1, "<i4")
    score = np.zeros(shape, "<f4")
    label: list[list[bytes]] = []
    for row, result in enumerate(answer.results):
        if result.error is not None:
            label.append([f"error: {result.error}".encode()] * top_k)
            continue
        index[row] = [p.index for p in result.predictions]
        score[row] = [p.score for p in result.predictions]
        label.append([p.label.encode() for p in result.predictions])
    values = {"label": label, "index": index, "score": score}
    return [Tensor(name, OUTPUTS[name], shape, values[name]) for name in names]
