"""What of --target tensorrt needs neither TensorRT nor a GPU: its sentences, its names, its configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from eca_build import cli, tensorrt_plan, tensorrt_worker, triton_config
from eca_build.errors import BuildError
from eca_build.export import export
from eca_build.tensorrt_plan import Gpu
from eca_plugin.sources import kernels_sha256
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.unit.test_quick_plugins import ROOT, empty_libraries
from tests.unit.test_tensorrt_rtx import SMALL, tiny

WEIGHTS = ROOT / "build" / "demo" / "resnet14-eca.safetensors"


def test_a_machine_without_tensorrt_is_a_sentence_and_nothing_is_published(tmp_path: Path) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    command = ["compile", str(WEIGHTS), "--target", "tensorrt", "--repository", str(tmp_path / "models")]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    assert done.output.startswith("eca-build: --target tensorrt needs TensorRT 10.15 or newer and a GPU")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_driver_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="GPU of this machine, and there is none with a working driver"):
        tensorrt_plan.require()


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the extra `plugin`")
def test_nodes_with_a_residual_get_the_name_of_their_plugin(tmp_path: Path) -> None:
    export(tiny("eca"), SMALL, tmp_path / "model.onnx", "epilogue", torch.float16)
    model = onnx.load(tmp_path / "model.onnx")
    assert tensorrt_plan.name_plugins(model) == 4
    custom = [node for node in model.graph.node if node.domain == "eca"]
    assert [(node.op_type, len(node.input)) for node in custom] == [("GatedConv1x1Residual", 5)] * 4
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in custom[0].attribute}
    assert attributes == {"relu": 1, "aot": 1, "plugin_namespace": b"eca"}


# Bindings of another version to look at too, unpacked from `pip download --no-deps tensorrt-cu13-bindings==11.*`.
OTHER_BINDINGS = os.environ.get("TENSORRT_BINDINGS")
# What prints those of the names, all but the first argument, that the module of the first lacks.
LACKING_NAMES = """\
import functools, importlib, sys
def has(module, name):
    try: functools.reduce(getattr, name.split('.'), module)
    except AttributeError: return False
    return True
print([name for name in sys.argv[2:] if not has(importlib.import_module(sys.argv[1]), name)])
"""


@pytest.mark.parametrize("home", [None, *([OTHER_BINDINGS] if OTHER_BINDINGS else [])])
def test_every_name_of_tensorrt_s_that_we_use_is_in_its_bindings(tmp_path: Path, home: str | None) -> None:
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("needs TensorRT's bindings, of the extra `dev`")
    source = Path(tensorrt_worker.__file__).read_text()
    used = set(re.findall(r"\btrt\.([\w.]*\w)", source)) | {
        f"NetworkDefinitionCreationFlag.{name}" for name in re.findall(r"\bcreation\.(\w+)", source)
    }
    objects = {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "parser": "OnnxParser",
        "runtime": "Runtime",
        "plan": "ICudaEngine",
        "context": "IExecutionContext",
    }
    run = source[source.index("def _build") :]
    used |= {f"{kind}.{name}" for word, kind in objects.items() for name in re.findall(rf"\b{word}\.(\w+)\(", run)}
    assert len(used) > 25
    done = subprocess.run(
        [sys.executable, "-c", LACKING_NAMES, "tensorrt_bindings", *sorted(used)],
        env=os.environ | {"LD_LIBRARY_PATH": str(empty_libraries(tmp_path)), "PYTHONPATH": home or ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("[E] [resizingAllocator.cpp] Requested amount of GPU memory could not be allocated: out of memory\n",
         r"too little free memory for batches of 64; lower --max-batch"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "too little free memory"),
        ("[E] In node 7: UNSUPPORTED_NODE: No importer registered for op: HardShrink. Attempting\n",
         "no layer for the model's operator HardShrink; use --attention-graph plain"),
        ("ImportError: libnvinfer.so.10: cannot open shared object file: No such file", "without its library libnv"),
        ("[E] CUDA initialization failure with error: 35. Please check your CUDA installation", "driver 580.65.06 is"),
        ("warning\n[E] first\n[E] the last of all\nmore", r"^\[E\] the last of all$"),
        ("", "exit status 9"),
    ],
)  # fmt: skip
def test_what_users_can_mend_is_a_sentence(stderr: str, expected: str) -> None:
    assert re.search(expected, tensorrt_plan.sentence(stderr, 9, GPU, 64))


def test_the_gpu_is_the_first_of_those_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi shows all, CUDA builds on the first that it is shown."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nshift 2\necho "$*, 9.0, 580.65.06"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for visible, asked in ((None, "0"), ("3,1", "3"), ("GPU-5fd4, GPU-1", "GPU-5fd4")):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert tensorrt_plan.require().name == f"-i {asked}"


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, tensorrt: str) -> None:
    """A driver and a TensorRT of our own, the latter the text of a module."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 580.65.06'\n")
    tool.chmod(0o755)
    module = folder / "modules" / "tensorrt"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(tensorrt)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(module.parent), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(module.parent))


@pytest.mark.parametrize(
    ("tensorrt", "expected"),
    [
        ("__version__ = '10.13.3'", "this is TensorRT 10.13.3; plugins .* need 10.15 or newer"),
        (
            "raise ImportError('libnvinfer.so.11: cannot open shared object file')",
            "without its library libnvinfer.so.11",
        ),
    ],
)
def test_a_tensorrt_that_will_not_do_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorrt: str, expected: str
) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    machine(tmp_path, monkeypatch, tensorrt)
    command = ["compile", str(WEIGHTS), "--target", "tensorrt", "--repository", str(tmp_path / "models")]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    said = f"eca-build: none of 5 .*: TensorRT could not build the plan: .*{expected}"
    assert re.search(said, done.output), done.output
    assert not list(tmp_path.glob("models/*"))


def test_a_plan_that_lacks_plugins_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    machine(tmp_path, monkeypatch, "__version__ = '10.16.1'")
    monkeypatch.setattr(tensorrt_plan, "TORCH_WORKER", (sys.executable, "-c", "print('plan 10.16.1 13.0 0')"))
    with pytest.raises(BuildError, match=r"^TensorRT made 0 plugins of the model's 3 custom nodes$"):
        tensorrt_plan.build_program(tmp_path / "model.pt2", tmp_path / "model.plan", 4, 3)
    assert tensorrt_plan.build_program(tmp_path / "model.pt2", tmp_path / "model.plan", 4, 0).tensorrt == "10.16.1"


def test_measurements_are_kept_for_what_they_were_taken_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    names = {tensorrt_plan.timing_cache(gpu) for gpu in (GPU, replace(GPU, driver="575.1"), replace(GPU, name="A100"))}
    monkeypatch.setattr(tensorrt_plan, "kernels_sha256", lambda: "others")
    names.add(tensorrt_plan.timing_cache(GPU))
    assert len(names) == 4
    assert {name.parent for name in names} == {Path("/cache/eca-serve")}


def test_key_of_a_build_says_what_a_plan_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    machine(tmp_path, monkeypatch, "__version__ = '10.16.1'")
    found = tensorrt_plan.tools()
    assert (found["gpu"], found["driver"]) == ("NVIDIA H100 80GB HBM3 (9.0)", "580.65.06")
    assert found["kernels"] == kernels_sha256()


@pytest.mark.parametrize("engine", triton_config.ENGINES)
def test_triton_s_own_parser_reads_the_configuration(engine: str) -> None:
    text = triton_config.config(
        name="m", engine=engine, max_batch=8, crop=32, classes=10, features_shape=(64, 8, 8), gates=()
    )
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.max_batch_size) == ("m", 8)
    assert (config.platform, config.backend) == {
        "onnx": ("", "onnxruntime"),
        "tensorrt": ("tensorrt_plan", ""),
        "tensorrt-rtx": ("", "tensorrt-rtx"),
        "inductor": ("", "inductor"),
    }[engine]
    group = model_config_pb2.ModelInstanceGroup
    assert config.instance_group[0].kind == (group.KIND_CPU if engine in ("onnx", "inductor") else group.KIND_GPU)
