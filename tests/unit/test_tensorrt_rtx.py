"""NVIDIA's real builder makes an engine of every graph, custom nodes included, on a machine without a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch
from eca_build import compile as build
from eca_build import images, lowering, quantise, targets, tensorrt_rtx, verify
from eca_build.cli.compiling import _sentence
from eca_build.errors import BuildError
from eca_build.export import export, reference
from eca_build.graphs import ATTENTION_GRAPHS, AttentionGraph
from eca_build.inputs import Options
from eca_build.networks import Network, create, with_formula
from eca_build.networks.attention import AttentionSites, Kind
from eca_build.networks.resnet import Bottleneck, ResNet, regular
from eca_build.provenance import sha256
from eca_build.targets import Precision, Wish
from eca_service.contract import Preprocessing, read
from safetensors.torch import save_file

SMALL = Preprocessing(resize=32, crop=32)
FULL = Preprocessing()
FUSED = ("fused", "hoisted-fused", "epilogue")

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None or find_spec("triton") is None, reason="needs the extra `tensorrt-rtx`"
)


def tiny(attention: Kind) -> ResNet:
    """A ResNet of four bottlenecks, one a stage."""
    torch.manual_seed(0)
    sizes = {"eca": [3, 5, 7, 9], "se": [16, 32, 64, 128], "none": []}[attention]
    return ResNet(regular(Bottleneck, (1, 1, 1, 1)), 10, AttentionSites(attention, sizes)).eval()


@pytest.mark.parametrize(
    ("attention", "graph", "dtype"),
    [
        ("eca", "plain", torch.float32),
        ("eca", "hoisted", torch.float16),
        ("eca", "fused", torch.float16),
        ("eca", "hoisted-fused", torch.bfloat16),
        ("eca", "epilogue", torch.float16),
        ("se", "plain", torch.float16),
        ("se", "hoisted", torch.bfloat16),
        ("se", "hoisted-fused", torch.float32),
        ("se", "epilogue", torch.float16),
        ("none", "plain", torch.bfloat16),
    ],
)
def test_engine_of_every_graph(tmp_path: Path, attention: Kind, graph: AttentionGraph, dtype: torch.dtype) -> None:
    model, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    export(tiny(attention), SMALL, model, graph, dtype)
    # one plugin for each custom node, or the build refuses
    passport = tensorrt_rtx.build(model, engine, 4)
    assert engine.stat().st_size > 1_000_000
    assert str(passport.tensorrt).startswith("1.")
    assert passport.gpu is None
    assert (passport.kernels_sha256 is not None) == (graph in FUSED)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrow_types_are_in_the_model_and_agree(tmp_path: Path, precision: Precision, dtype: torch.dtype) -> None:
    model = tmp_path / "model.onnx"
    net = tiny("eca")
    export(net, SMALL, model, "fused", dtype)
    graph = onnx.load(model).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 1 + 3 * 4 + 4
    assert {weights[node.input[1]] for node in convolutions} == {wanted}
    assert {output.type.tensor_type.elem_type for output in graph.output} == {onnx.TensorProto.FLOAT}
    lowering.lower_file(model, widen=precision == "bf16")
    sample = images.synthetic(32, 8)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    gate = targets.EXACT[precision]
    verify.compare(expected, verify.answers(model, sample), gate.largest, gate.agreement, "test")


def test_published_version_says_what_was_verified(tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    torch.manual_seed(0)
    net = create(with_formula("resnet20_cifar", "eca", 10)).eval()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, weights)
    options = Options(weights, tmp_path / "models", wish=Wish("tensorrt-rtx", "fp16", "fused", 4))
    steps: list[str] = []
    built = build.compile_checkpoint(options, steps.append)
    assert built.contract == read(built.folder, head=True)
    assert (built.contract.engine, built.contract.precision, built.contract.sites_rewritten) == (
        "tensorrt-rtx",
        "fp16",
        9,
    )
    assert built.contract.passport is not None
    assert "the engine itself was not run" in built.contract.verification.source
    assert "on 64 images (its ONNX model; no GPU here runs the engine itself)" in _sentence(built)
    assert built.contract.onnx_sha256 != built.contract.engine_sha256 == sha256(built.folder / "model.engine")
    assert sorted(path.name for path in built.folder.iterdir()) == ["contract.json", "golden.npy", "model.engine"]
    assert len(steps) == build.steps(options.wish)
    assert not build.compile_checkpoint(options, steps.append).changed


def test_a_model_that_cannot_be_built_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BuildError, match="TensorRT-RTX could not build the engine"):
        tensorrt_rtx.build(tmp_path / "model.onnx", tmp_path / "model.engine", 4)
    assert not (tmp_path / "model.engine").exists()


def test_the_builder_s_own_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    export(tiny("none"), SMALL, tmp_path / "model.onnx")
    with pytest.raises(BuildError, match=r"could not build the engine: .*Cuda Runtime .*(driver|device)"):
        tensorrt_rtx.build(tmp_path / "model.onnx", tmp_path / "model.engine", 4, tensorrt_rtx.CURRENT)


def test_a_missing_builder_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"pip install 'eca-serve\[tensorrt-rtx\]'"):
        targets.variants(Wish("tensorrt-rtx"))


def test_a_precision_that_the_target_lacks_is_a_sentence() -> None:
    with pytest.raises(
        BuildError, match="--target onnx --runtime onnxruntime has no --precision fp16; it has fp32, int8"
    ):
        targets.variants(Wish("onnx", "fp16"))


@pytest.mark.parametrize("graph", ["plain", "fused", "epilogue"])
def test_int8_engine_with_custom_nodes(tmp_path: Path, graph: AttentionGraph) -> None:
    model, integers, engine = (tmp_path / name for name in ("model.onnx", "int8.onnx", "model.engine"))
    net = tiny("eca")
    sample = images.synthetic(SMALL.crop, 16)
    export(net, SMALL, model, graph)
    quantise.quantise(model, integers, sample, quantise.TENSORRT)
    kinds = [node.op_type for node in onnx.load(integers).graph.node]
    assert kinds.count("QuantizeLinear") > 4
    assert sum(kind in ("FusedECA", "GatedConv1x1") for kind in kinds) == (4 if graph in FUSED else 0)
    tensorrt_rtx.build(integers, engine, 4)
    assert engine.exists()
    lowering.lower_file(integers)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    verify.compare(expected, verify.answers(integers, sample), 0.1, 0.0, "test")


@pytest.mark.large
@pytest.mark.parametrize("graph", ATTENTION_GRAPHS)
@pytest.mark.parametrize("attention", ["eca", "se", "none"])
@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2"])
def test_full_size_networks(tmp_path: Path, arch: str, attention: Kind, graph: AttentionGraph) -> None:
    if graph != "plain" and (attention == "none" or (attention, graph) == ("se", "fused")):
        pytest.skip("this network has no such graph")
    torch.manual_seed(0)
    net: Network = create(with_formula(arch, attention, 1000)).eval()
    model, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    sites = export(net, FULL, model, graph, torch.float16)
    assert sites == (0 if graph == "plain" else {"resnet50": 16, "mobilenetv2": 17}[arch])
    tensorrt_rtx.build(model, engine, 32)
    assert engine.exists()
