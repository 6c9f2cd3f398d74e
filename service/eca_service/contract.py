"""What a served model is: the one definition that the build writes and the gateway checks.

`contract.json` lies in `model_repository/<name>/<version>/`, beside the engine and `golden.npy`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CONTRACT_FILE = "contract.json"
GOLDEN_FILE = "golden.npy"
ENGINE_FILES = {
    "onnx": "model.onnx",
    "tensorrt": "model.plan",
    "tensorrt-rtx": "model.engine",
    "inductor": "model.pt2",
}
INPUT = "image"
PROBABILITIES = "probabilities"
FEATURES = "features"
GATES = "gates"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a model


class ContractError(Exception):
    """A contract file that is missing or does not say what a contract must; the message names the file."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """From a decoded image to the input tensor, and from there to what the network was trained on.

    The shorter side is resized to `resize` pixels with Pillow's antialiased `filter`, then the centre `crop` x `crop`
    is cut. `mean` and `std` are in units of [0, 1] per RGB channel and are applied inside the graph.
    """

    resize: int = Field(256, ge=1, le=4096)
    crop: int = Field(224, ge=1, le=4096)
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the recipe's canonical JSON: equal recipes have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class Verification(_Frozen):
    """How far the engine is from the PyTorch network in fp32, on `images` images, read back from disk.

    A `tolerance` of 1 sets no limit to a probability: then `least_agreement` and the accuracy decide. `accuracy` and
    `reference_accuracy`, the network's, are over the `labelled` of the images, None where the class of none is known.
    """

    source: str
    images: int = Field(ge=1)
    top1_agreement: float = Field(ge=0, le=1)
    least_agreement: float = Field(0, ge=0, le=1)
    largest_difference: float = Field(ge=0, le=1)
    tolerance: float = Field(gt=0)
    labelled: int = Field(0, ge=0)
    accuracy: float | None = Field(None, ge=0, le=1)
    reference_accuracy: float | None = Field(None, ge=0, le=1)


class Calibration(_Frozen):
    """Where the ranges of an int8 engine's activations come from; `sha256` (hex) is of the images' pixels."""

    source: str
    images: int = Field(ge=1)
    sha256: str


class Candidate(_Frozen):
    """One of the engines that the build compared.

    `images_per_s` by batch, and `relative`, their speed over that of the first that was verified, are None where it was
    `refused`, for the reason given.
    """

    runtime: str | None
    precision: str
    attention_graph: str
    frontend: str | None = None
    images_per_s: dict[int, float] | None = None
    relative: float | None = None
    refused: str | None = None


class Choice(_Frozen):
    """Why this engine, where the build was to find the fastest: what it compared, on which machine."""

    why: str
    machine: str
    threads: int = Field(ge=1)
    candidates: tuple[Candidate, ...]


class Golden(_Frozen):
    """Inputs with known answers: `golden.npy` is uint8 [n, crop, crop, 3]; `probabilities` are its [n, K] answers."""

    sha256: str
    probabilities: tuple[tuple[float, ...], ...]
    tolerance: float = Field(gt=0)


class Head(_Frozen):
    """The linear classifier, for class activation maps: base64 of little-endian float32, row-major."""

    classes: int
    channels: int
    weight: str
    bias: str


class GateSite(_Frozen):
    """One attention site: the block it is in, by its name in the network, and how many channels it scales."""

    block: str
    channels: int = Field(ge=1)


class Passport(_Frozen):
    """What a compiled engine was built with and for: it runs where these are the same, and nowhere else.

    `tensorrt` or `torch` is the version of what runs it. `compute_capability` is that of the GPU ("9.0"), None for a
    portable engine, which has no `gpu` either. `device` is an inductor engine's; on a CPU it needs its `instructions`,
    by the kernel's names. `frontend` is what made a TensorRT plan. `kernels_sha256` (hex) covers the sources of the
    fused kernels inside, None where there are none.
    """

    tensorrt: str | None = None
    torch: str | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    instructions: tuple[str, ...] = ()
    cuda: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    kernels_sha256: str | None = None
    frontend: Literal["onnx", "torch-tensorrt"] | None = None


class Contract(_Frozen):
    """One version of a model: what it is, what it was made of, and how far it was verified.

    `kernel_sizes` are the attention's, site by site. `features_shape` is [C, h, w]. `flops` are one image's
    multiply-adds.
    `gates` is empty unless the build was asked to expose them: then the output `gates`, float32 [N, sum of channels],
    holds every site's gate in this order, each value in (0, 1).
    `runtime` is what an `onnx` engine is fastest in: any runtime of ONNX gives its golden answers. None is onnxruntime.
    """

    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    architecture: str
    attention: str
    weights: Literal["trained", "random"] = "trained"  # random ones are for latency only
    kernel_sizes: tuple[int, ...]
    classes: int = Field(ge=1)
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    preprocessing_fingerprint: str
    input: str = INPUT
    outputs: tuple[Literal["probabilities", "features", "gates"], ...] = ("probabilities", "features")
    features_shape: tuple[int, int, int]
    gates: tuple[GateSite, ...] = ()
    precision: Literal["fp32", "bf16", "fp16", "int8"]
    engine: Literal["onnx", "tensorrt", "tensorrt-rtx", "inductor"]
    runtime: Literal["onnxruntime", "openvino"] | None = None
    attention_graph: str = "plain"
    sites_rewritten: int = Field(0, ge=0)
    max_batch: int = Field(ge=1)
    parameters: int
    flops: int
    build_key: str
    checkpoint_sha256: str
    onnx_sha256: str
    engine_sha256: str
    tools: dict[str, str]
    passport: Passport | None = None
    calibration: Calibration | None = None
    choice: Choice | None = None
    verification: Verification
    golden: Golden
    head: Head | None = None

    def public(self) -> dict[str, object]:
        """What callers are shown: everything but the head's weights."""
        return self.model_dump(mode="json", exclude={"head"})


def read(folder: Path, head: bool = False) -> Contract:
    """The contract of a version's folder, without the head's weights unless asked for.

    Raises ContractError where the file is missing, unreadable, no JSON or no contract, or where its parts contradict.
    """
    path = folder / CONTRACT_FILE
    try:
        raw = json.loads(path.read_bytes())
        if isinstance(raw, dict) and not head:
            raw.pop("head", None)
        contract = Contract.model_validate(raw)
    except FileNotFoundError:
        raise ContractError(f"{path} is missing; build the model again with `eca-build compile`") from None
    except OSError as error:
        raise ContractError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ContractError(f"{path} is not a contract ({reason}); build the model again") from None
    if len(contract.labels) != contract.classes:
        raise ContractError(f"{path} has {len(contract.labels)} labels for {contract.classes} classes")
    if contract.preprocessing_fingerprint != contract.preprocessing.fingerprint:
        raise ContractError(f"{path}: the preprocessing recipe was changed after the build; build the model again")
    return contract
