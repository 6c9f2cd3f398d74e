"""A float32 ONNX model as int8: explicit QuantizeLinear and DequantizeLinear, with ranges calibrated on images.

The integers are the convolutions', the activations' behind them, the additions' of the shortcuts and the classifier's.
Float32 stay the gate of the attention, what the classifier answers and the softmax; so do the types of the model's
input and outputs. Custom nodes stay as they are.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from eca_service.contract import INPUT
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from eca_build.errors import BuildError
from eca_build.lowering import custom_nodes_as_functions, restore_custom_nodes
from eca_build.scratch import scratch

CLASSIFIER = "Gemm"
POOLS = ("ReduceMean", "ReduceMax")
# Of a channel's weights: the integers of a bias count in steps that get smaller with them. Where all are near zero, as
# batch norms leave channels that are off, the sums would leave their 32 bits; where all are zero, the steps would be 1.
LEAST_RANGE = 1e-4


@dataclass(frozen=True)
class Scheme:
    """Which integers a runtime is given; weights are int8, around zero, with a scale for each output channel.

    `activations` are uint8 with a zero point, or int8 around zero. `weight_bits` are those that weights use: with 7 no
    sum of two products leaves the 16 bits in which CPUs without VNNI keep it, so that the integers are the same on
    every CPU. `operators` are ONNX's names of what is quantised; a ReLU goes with what is before it. The bias is int32,
    or float32 where `float_bias`. Where not `outputs`, results of operators stay float32 until another one takes them.
    Where not `ends`, the convolution that sees the pixels and the classifier stay float32.
    """

    activations: Literal["uint8", "int8"]
    weight_bits: Literal[7, 8]
    operators: tuple[str, ...] = ("Conv", "Relu", "Clip", "Add", CLASSIFIER)
    float_bias: bool = False
    outputs: bool = True
    ends: bool = True


CPU = Scheme("uint8", 7)
# it reads no zero points and no integer biases
TENSORRT = Scheme("int8", 8, float_bias=True, outputs=False, ends=False)


def quantise(source: Path, target: Path, images: NDArray[np.uint8], scheme: Scheme = CPU) -> None:
    """Writes the float32 model `source` to `target` with integers of `scheme`.

    The ranges of the activations are the smallest and largest values seen on `images`, uint8 [N, H, W, 3]. Raises
    BuildError where the model has nothing to quantise, and where the disk of the temporary files is full.
    """
    model = onnx.load(source)
    names = {node.name for node in model.graph.node if node.op_type in scheme.operators}
    kept = _gates(model) if scheme.ends else _gates(model) | _ends(model)
    if not names - kept:
        raise BuildError(
            "the network has nothing that --precision int8 would turn into integers; use another precision"
        )
    with scratch("quantise") as folder, _quiet(), _written():
        runnable, quantised = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(custom_nodes_as_functions(model), runnable)
        quantize_static(
            runnable,
            quantised,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(scheme.operators),
            per_channel=True,
            reduce_range=scheme.weight_bits == 7,
            activation_type=QuantType.QUInt8 if scheme.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
            extra_options={
                "ActivationSymmetric": scheme.activations == "int8",
                "WeightSymmetric": True,
                "QuantizeBias": not scheme.float_bias,
                "MinimumRealRange": None if scheme.float_bias else LEAST_RANGE,
                # in 256 steps what the classifier answers would be no probabilities worth to be told
                "OpTypesToExcludeOutputQuantization": [CLASSIFIER] if scheme.outputs else list(scheme.operators),
            },
        )
        result = onnx.load(quantised)
    restore_custom_nodes(result, model)
    onnx.save(result, target)


def _ends(model: onnx.ModelProto) -> set[str]:
    """Names of the convolution that sees the pixels and of the classifier."""
    first = next((node.name for node in model.graph.node if node.op_type == "Conv"), "")
    return {first} | {node.name for node in model.graph.node if node.op_type == CLASSIFIER}


def _gates(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes of the gates.

    A gate ends in a sigmoid and begins where the map is pooled, over positions or, in CBAM, over channels. What CBAM
    sums between is no pooling.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    kept = set[str]()
    waiting = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    while waiting:
        node = waiting.pop()
        kept.add(node.name)
        if node.op_type not in POOLS:
            before = (makers.get(name) for name in node.input)
            waiting += [maker for maker in before if maker is not None and maker.name not in kept]
    return kept


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the images in batches, once."""

    def __init__(self, images: NDArray[np.uint8], batch: int = 32) -> None:
        self._batches = iter(np.split(images, range(batch, len(images), batch)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by the input's name; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _written() -> Iterator[None]:
    """Within it a file that was written in part is a BuildError: onnx infers shapes to a file and fails in silence."""
    try:
        yield
    except DecodeError:
        raise BuildError(
            f"a model that was written to {tempfile.gettempdir()} cannot be read back; make room there, or set "
            "the environment variable TMPDIR to another folder"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it the quantiser does not advise on the root logger; its errors are exceptions."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
