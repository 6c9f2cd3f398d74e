"""What Triton is told of a model, and what it must say of it before it gets images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from eca_service.contract import FEATURES, GATES, INPUT, PROBABILITIES, Contract
from eca_service.errors import ServiceError


def shapes(contract: Contract) -> dict[str, tuple[int, ...]]:
    """Of the outputs, without the batch."""
    every: dict[str, tuple[int, ...]] = {
        PROBABILITIES: (contract.classes,),
        FEATURES: contract.features_shape,
        GATES: (sum(site.channels for site in contract.gates),),
    }
    return {name: every[name] for name in contract.outputs}


def present(home: Path, versions: Collection[int]) -> set[int]:
    """Those of the model's `versions` whose folders are in `home`."""
    return {version for version in versions if (home / str(version)).exists()}


def config(home: Path, versions: Collection[int], contract: Contract | None) -> str:
    """The model's own config.pbtxt in `home` with these versions, as Triton's JSON.

    Raises model_not_ready, also where it is not the `contract`'s: with it Triton would no longer serve, as agreed, the
    versions that it has already.
    """
    found = model_config_pb2.ModelConfig()
    try:
        text_format.Parse((home / "config.pbtxt").read_text(), found)
    except (OSError, text_format.ParseError) as error:
        raise ServiceError("model_not_ready", f"{home / 'config.pbtxt'} cannot be read: {error}") from None
    if contract:
        tensors = (*found.input, *found.output)
        types = {t.name: model_config_pb2.DataType.Name(t.data_type).removeprefix("TYPE_") for t in tensors}
        _require(contract, {t.name: (types[t.name], list(t.dims)) for t in tensors}, str(home / "config.pbtxt"))
        if (most := found.max_batch_size) < contract.max_batch:
            raise ServiceError(
                "model_not_ready",
                f"{home / 'config.pbtxt'} has a max_batch_size of {most}, the contract of {contract.max_batch}",
            )
    found.version_policy.specific.versions.extend(sorted(versions))
    return str(json_format.MessageToJson(found, preserving_proto_field_name=True))


def require_as_agreed(contract: Contract, metadata: Any) -> None:
    """Raises model_not_ready where Triton's ModelMetadataResponse has other tensors than the contract."""
    found = {t.name: (t.datatype, list(t.shape)[1:]) for t in (*metadata.inputs, *metadata.outputs)}
    _require(contract, found, f"{contract.name}: Triton")


def _require(contract: Contract, found: Mapping[str, tuple[str, list[int]]], whose: str) -> None:
    crop = contract.preprocessing.crop
    outputs = {tensor: ("FP32", list(shape)) for tensor, shape in shapes(contract).items()}
    wanted = {INPUT: ("UINT8", [crop, crop, 3]), **outputs}
    for tensor, kind in wanted.items():
        if found.get(tensor) != kind:
            raise ServiceError("model_not_ready", f"{whose} has {tensor} as {found.get(tensor)}, the contract {kind}")


def batches_at_once(found: Any) -> int:
    """How many a server runs, by its ModelConfig: one in each instance."""
    return sum(group.count * max(1, len(group.gpus)) for group in found.instance_group) or 1
