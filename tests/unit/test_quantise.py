"""int8: what becomes integers, what stays float, and that every CPU and runtime gets the same answers from the file."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from eca_build import checkpoint, images, lowering, quantise, verify
from eca_build.errors import BuildError
from eca_build.export import export, reference
from eca_build.networks import create, with_formula
from eca_build.networks.attention import Kind
from eca_build.recipes import default_recipe
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from tests.unit.test_export import SMALL
from tests.unit.test_tensorrt_rtx import tiny

DEMO = Path(__file__).parents[2] / "build" / "demo"


@pytest.fixture(scope="module")
def sample() -> NDArray[np.uint8]:
    """The 60 images of the demo networks."""
    return images.load(DEMO / "images", default_recipe("resnet14_cifar"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network in float32."""
    loaded = checkpoint.load(DEMO / "resnet14-eca.safetensors")
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export(loaded.network, default_recipe(loaded.spec.arch), path)
    return path


@pytest.fixture(scope="module")
def int8(model: Path, sample: NDArray[np.uint8]) -> Path:
    """The same in int8, for CPUs."""
    path = model.with_name("int8.onnx")
    quantise.quantise(model, path, sample)
    return path


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Types of the initialisers, by name."""
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_tensors_keep_their_types_and_the_gates_stay_float(model: Path, int8: Path) -> None:
    before, after = onnx.load(model), onnx.load(int8)
    assert [info.type for info in (*before.graph.input, *before.graph.output)] == [
        info.type for info in (*after.graph.input, *after.graph.output)
    ]
    kinds = types(after)
    convolutions = [node for node in after.graph.node if node.op_type == "Conv"]
    as_float = [node for node in convolutions if kinds.get(node.input[1]) == TensorProto.FLOAT]
    shapes = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    # 6 blocks: six gates, of one axis, stay; the stem and two convolutions a block are int8, and so is the classifier
    assert [len(shapes[node.input[1]]) for node in as_float] == [3] * 6
    assert len(convolutions) - len(as_float) == 13
    classifier = next(node for node in after.graph.node if node.op_type == "Gemm")
    assert classifier.input[1] not in kinds, "it comes from integers"
    readers = [node.op_type for node in after.graph.node if classifier.output[0] in node.input]
    assert readers == ["Softmax"], "what it answers is no integer"
    makers = {output: node.op_type for node in after.graph.node for output in node.output}
    shortcuts = [[makers[name] for name in node.input] for node in after.graph.node if node.op_type == "Add"]
    assert shortcuts == [["DequantizeLinear"] * 2] * 6
    assert "Relu" not in makers.values(), "each went into the range of what was before it"
    assert TensorProto.INT32 in kinds.values(), "the biases are integers too"
    zeros = {kinds[node.input[2]] for node in after.graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {TensorProto.UINT8}, "what CPUs multiply fastest"


@pytest.mark.parametrize("attention", ["se", "cbam", "se-gc2", "eca-ns"])
def test_of_every_attention_the_gates_stay_float(tmp_path: Path, attention: Kind) -> None:
    """What becomes integers is what a network without attention has: no linear layer, convolution, sum or ReLU of a
    gate, on whichever of its paths. CBAM sums two of them, and its layers may have biases.
    """

    def integers(kind: Kind) -> list[str]:
        spec = replace(with_formula("resnet14_cifar", kind, 10), bias=kind in ("se", "cbam"))
        export(create(spec), SMALL, tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        kept = quantise._gates(model)
        return [node.op_type for node in model.graph.node if node.op_type in operators and node.name not in kept]

    operators = quantise.CPU.operators
    assert sorted(integers(attention)) == sorted(integers("none"))


def test_weights_have_a_scale_a_channel_and_seven_bits(int8: Path) -> None:
    """Two products of such a weight with a uint8 fit the 16 bits in which AVX2 sums them: nothing saturates."""
    model = onnx.load(int8)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [
        (held[node.input[0]], held[node.input[1]], held[node.input[2]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held and held[node.input[0]].ndim == 4
    ]
    assert len(weights) == 13
    for values, scales, zeros in weights:
        assert (values.dtype, scales.shape, set(zeros.tolist())) == (np.int8, values.shape[:1], {0})
        assert 2 * 255 * np.abs(values.astype(int)).max() < 2**15
        assert np.abs(values).max() == 64


def test_accuracy_stays(model: Path, int8: Path, sample: NDArray[np.uint8]) -> None:
    loaded = checkpoint.load(DEMO / "resnet14-eca.safetensors")
    expected = reference(loaded.network, default_recipe(loaded.spec.arch), torch.from_numpy(sample)).numpy()
    got = verify.answers(int8, sample)
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.95
    assert np.abs(got - expected).max(1).mean() < 0.02
    assert np.abs(got - expected).max() > 1e-3, "the integers are not there"
    assert int8.stat().st_size < 0.4 * model.stat().st_size


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs QEMU's user emulation")
def test_a_cpu_without_vnni_gives_the_same_answers(int8: Path, sample: NDArray[np.uint8]) -> None:
    emulator = ["qemu-x86_64-static", "-cpu", "Haswell"]
    done = subprocess.run(
        [*emulator, sys.executable, "-c", "print(open('/proc/self/comm').read())"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this QEMU cannot run this Python")
    emulated = verify.answers(int8, sample[:8], [*emulator, *verify.RUNNER])
    # float32 is rounded otherwise there, which now and then moves an activation by one step
    np.testing.assert_allclose(emulated, verify.answers(int8, sample[:8]), atol=5e-3)


@pytest.mark.parametrize(("graph", "operator"), [("fused", "FusedECA"), ("epilogue", "GatedConv1x1")])
def test_custom_nodes_stay_as_they_are(tmp_path: Path, graph: str, operator: str) -> None:
    model, int8 = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    export(tiny("eca"), SMALL, model, graph)  # type: ignore[arg-type]
    sample = images.synthetic(SMALL.crop, 8)
    quantise.quantise(model, int8, sample, quantise.TENSORRT)
    before, after = ([node for node in onnx.load(path).graph.node if node.domain == "eca"] for path in (model, int8))
    assert [node.op_type for node in after] == [operator] * 4
    assert [list(node.attribute) for node in after] == [list(node.attribute) for node in before]
    expected, got = (verify.answers(lowered(path), sample) for path in (model, int8))
    np.testing.assert_allclose(got, expected, atol=5e-3)
    assert not np.array_equal(got, expected)


def lowered(path: Path) -> Path:
    lowering.lower_file(path)
    return path


def test_tensorrt_s_scheme(model: Path, sample: NDArray[np.uint8], tmp_path: Path) -> None:
    """TensorRT reads neither zero points other than 0 nor unsigned or 32-bit integers."""
    quantise.quantise(model, tmp_path / "int8.onnx", sample[:16], quantise.TENSORRT)
    after = onnx.load(tmp_path / "int8.onnx")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    pairs = [node for node in after.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert Counter(node.op_type for node in pairs)["QuantizeLinear"] >= 12
    for node in pairs:
        assert held[node.input[2]].dtype == np.int8
        assert not held[node.input[2]].any()
    assert {array.dtype.name for array in held.values()} == {"int8", "float32", "int64"}
    ends = [next(node for node in after.graph.node if node.op_type == kind) for kind in ("Conv", "Gemm")]
    assert [held[node.input[1]].dtype.name for node in ends] == ["float32"] * 2, "the stem and the classifier stay"
    results = {node.output[0] for node in after.graph.node if node.op_type == "Conv"}
    assert not [node for node in pairs if node.input[0] in results], "they stay float32 until they are taken"
    got = verify.answers(tmp_path / "int8.onnx", sample)
    assert (got.argmax(1) == verify.answers(model, sample).argmax(1)).mean() >= 0.95


def test_the_ranges_come_from_every_image(sample: NDArray[np.uint8]) -> None:
    for count in (1, 32, 33, 60):
        handed = list(iter(quantise._Images(sample[:count]).get_next, None))
        np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in handed]), sample[:count])


def test_a_full_disk_is_a_sentence(model: Path, sample: NDArray[np.uint8], tmp_path: Path) -> None:
    """The model fits, but not with the shapes that onnx writes into it."""
    bare = onnx.load(model)
    del bare.graph.value_info[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "bare.onnx").stat().st_size, hard))
    try:
        with pytest.raises(BuildError, match="cannot be read back; make room there, or set the environment variable"):
            quantise.quantise(tmp_path / "bare.onnx", tmp_path / "q.onnx", sample)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_relu6_goes_into_the_range_of_what_was_before_it(tmp_path: Path) -> None:
    """As MobileNetV2 has them."""
    make, random = onnx.helper, np.random.default_rng(0)
    nodes = [
        make.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        make.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        make.make_node("Conv", ["planes", "w"], ["sums"], "conv"),
        make.make_node("Clip", ["sums", "low", "high"], ["probabilities"], "relu6"),
    ]
    weights = {"w": random.normal(size=(4, 3, 3, 3)).astype(np.float32), "low": np.float32(0), "high": np.float32(6)}
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [make.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    quantise.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", images.synthetic(8, 4))
    assert "Clip" not in {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}


def test_a_channel_that_is_off_keeps_its_bias(tmp_path: Path) -> None:
    """A batch norm with a gamma near zero, or of zero, leaves weights so small beside the bias that is the answer."""
    make, random = onnx.helper, np.random.default_rng(0)
    nodes = [
        make.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        make.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        make.make_node("Conv", ["planes", "w", "b"], ["sums"], "conv", pads=[3, 3, 3, 3]),
        make.make_node("Relu", ["sums"], ["probabilities"], "relu"),
    ]
    sizes = np.concatenate([[0], np.logspace(-12, -4, 41)])
    weights = {
        "w": (random.uniform(size=(42, 3, 7, 7)) * sizes[:, None, None, None]).astype(np.float32),
        "b": np.full(42, 0.4, np.float32),
    }
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [make.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 42, 8, 8])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    sample = images.synthetic(8, 4)
    quantise.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", sample)
    expected, got = (verify.answers(tmp_path / name, sample) for name in ("m.onnx", "q.onnx"))
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_nothing_to_quantise_is_a_sentence(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 4, 3])
    out = onnx.helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4, 4, 3])
    node = onnx.helper.make_node("Cast", ["image"], ["probabilities"], to=TensorProto.FLOAT)
    graph = onnx.helper.make_graph([node], "g", [info], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="nothing that --precision int8 would"):
        quantise.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", images.synthetic(4, 2))
    assert not (tmp_path / "q.onnx").exists()
