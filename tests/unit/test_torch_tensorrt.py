"""What of the Torch-TensorRT frontend needs neither it nor a GPU: our operators in the program, and its names."""

from __future__ import annotations

import ast
import os
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_build import targets, tensorrt_plan, torch_tensorrt_worker
from eca_build.errors import BuildError
from eca_build.export import Served, export_program
from eca_build.graphs import AttentionGraph
from eca_build.targets import Wish
from eca_plugin import tuner
from eca_plugin.descriptor import OPERATORS, TORCH_NAMES

from tests.unit.test_tensorrt_rtx import SMALL, tiny

OPERATOR = {"fused": "fused_eca", "hoisted-fused": "scale_add_relu", "epilogue": "gated_conv1x1"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of PyTorch's own exporter
@pytest.mark.parametrize("graph", OPERATOR)
def test_exported_program_keeps_our_operators(tmp_path: Path, graph: AttentionGraph) -> None:
    file = tmp_path / "program.pt2"
    export_program(Served(tiny("eca"), SMALL, graph, torch.float16), file, SMALL.crop, 64)
    program = torch.export.load(file)
    sites = tuner.sites_of(program)
    assert [site.shapes[0][1][-1] for site in sites] == [8, 4, 2, 1], "the sides of its maps"
    assert all(site.nhwc and site.residual and site.relu and site.dtype == "fp16" for site in sites[:3])
    lowered = program.run_decompositions()  # as Torch-TensorRT does first
    calls = [node for node in lowered.graph.nodes if str(node.target) == f"eca.{OPERATOR[graph]}.default"]
    assert len(calls) == 4
    plugin = TORCH_NAMES[OPERATOR[graph]]
    for call in calls:
        *tensors, residual, relu = call.args
        assert len(tensors) == len(OPERATORS[plugin].inputs), "what the converter counts on"
        assert residual is not None
        assert relu is True
    assert [node.name for node in lowered.graph.nodes if node.op == "placeholder"][-1] == "image"


def test_all_frontends_that_are_installed_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plan, "require", lambda: None)
    monkeypatch.setattr(tensorrt_plan, "frontends", lambda: ("onnx", "torch-tensorrt"))
    wish = Wish("tensorrt", "fp16", "fused")
    assert [str(one) for one in targets.variants(wish)] == [
        "tensorrt fp16 fused",
        "tensorrt fp16 fused by torch-tensorrt",
    ]
    assert [one.frontend for one in targets.variants(replace(wish, precision="int8"))] == ["onnx"]
    with pytest.raises(BuildError, match="has no --precision int8; use --frontend onnx"):
        targets.variants(replace(wish, precision="int8", frontend="torch-tensorrt"))
    monkeypatch.setattr(tensorrt_plan, "frontends", lambda: ("onnx",))
    assert [one.frontend for one in targets.variants(wish)] == ["onnx"]
    with pytest.raises(BuildError, match="needs Torch-TensorRT"):
        targets.variants(replace(wish, frontend="torch-tensorrt"))
    with pytest.raises(BuildError, match="is for --target tensorrt; leave it out with --target onnx"):
        targets.variants(Wish("onnx", frontend="onnx"))


def test_arguments_are_the_plugin_s_in_its_order() -> None:
    for name, plugin in TORCH_NAMES.items():
        schema = getattr(torch.ops.eca, name).default._schema
        assert [argument.name for argument in schema.arguments[-2:]] == ["residual", "relu"]
        assert len(schema.arguments) - 2 == len(OPERATORS[plugin].inputs)


@pytest.mark.parametrize("residual", [None, "r"])
def test_converter_makes_the_plugin(monkeypatch: pytest.MonkeyPatch, residual: str | None) -> None:
    made: list[Any] = []

    class Network:
        def add_plugin(self, plugin: object, aot: bool) -> SimpleNamespace:
            made.append((plugin, aot))
            return SimpleNamespace(get_output=lambda index: f"output {index}")

    kinds = {name: lambda *inputs, relu, name=name: (name, inputs, relu) for name in ("FusedECA", "FusedECAResidual")}
    utilities = SimpleNamespace(get_trt_tensor=lambda ctx, value, name: f"tensor {value}")
    plugins = SimpleNamespace(op=SimpleNamespace(eca=SimpleNamespace(**kinds)))
    for module, content in (
        ("tensorrt", SimpleNamespace(plugin=plugins)),
        ("tensorrt.plugin", plugins),
        ("torch_tensorrt", SimpleNamespace()),
        ("torch_tensorrt.dynamo", SimpleNamespace()),
        ("torch_tensorrt.dynamo.conversion", SimpleNamespace()),
        ("torch_tensorrt.dynamo.conversion.converter_utils", utilities),
    ):
        monkeypatch.setitem(sys.modules, module, content)
    convert = torch_tensorrt_worker._converter("FusedECA")
    assert convert(SimpleNamespace(net=Network()), "target", ("x", "w", residual, True), {}, "name") == "output 0"
    inputs = ("tensor x", "tensor w", *(["tensor r"] if residual else []))
    assert made == [(("FusedECAResidual" if residual else "FusedECA", inputs, 1), True)]


def sources() -> Path | None:
    """Torch-TensorRT's own: installed, or unpacked from `pip download --no-deps torch-tensorrt` at TORCH_TENSORRT."""
    if os.environ.get("TORCH_TENSORRT"):
        return Path(os.environ["TORCH_TENSORRT"], "torch_tensorrt")
    spec = find_spec("torch_tensorrt")
    return Path(spec.origin).parent if spec and spec.origin else None


def function(file: Path, name: str) -> ast.FunctionDef:
    """A function or method in a source that cannot be imported here."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name)


@pytest.mark.skipif(sources() is None, reason="Torch-TensorRT is not installed here, nor unpacked at TORCH_TENSORRT")
def test_every_name_of_torch_tensorrt_s_that_we_use_is_there() -> None:
    home = sources()
    assert home
    converting = function(home / "dynamo" / "_compiler.py", "convert_exported_program_to_serialized_trt_engine")
    taken = {argument.arg for argument in converting.args.kwonlyargs}
    source = Path(torch_tensorrt_worker.__file__).read_text()
    call = source[source.index("convert_exported_program_to_serialized_trt_engine(") :]
    assert set(re.findall(r"^        (\w+)=", call, re.MULTILINE)) <= taken
    registering = function(home / "dynamo" / "conversion" / "_ConverterRegistry.py", "dynamo_tensorrt_converter")
    assert "supports_dynamic_shapes" in {argument.arg for argument in registering.args.kwonlyargs}
    output = function(home / "dynamo" / "conversion" / "_TRTInterpreter.py", "output")
    assert [argument.arg for argument in output.args.args] == ["self", "target", "args", "kwargs"]
    assert "self._output_names.append(name)" in ast.unparse(output)
    assert "return list(outputs)" in ast.unparse(output)
    tensor = function(home / "dynamo" / "conversion" / "converter_utils.py", "get_trt_tensor")
    assert [argument.arg for argument in tensor.args.args][:3] == ["ctx", "input_val", "name"]
    assert "from ._ConverterRegistry import *" in (home / "dynamo" / "conversion" / "__init__.py").read_text()
