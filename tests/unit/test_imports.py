"""What may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = sorted((ROOT / "service" / "eca_service").rglob("*.py"))
BUILD = sorted((ROOT / "build" / "eca_build").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(paths: list[Path], package: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


@pytest.mark.parametrize("package", ["tensorrt", "torch_tensorrt", "eca_build"])
def test_service_never_imports(package: str) -> None:
    assert SERVICE
    assert importers(SERVICE, package) == set()


def test_build_uses_only_what_describes_and_runs_an_engine() -> None:
    used = {n for path in BUILD for n in imported(path) if n.startswith("eca_service")}
    assert used
    as_served = ("eca_service.colours", "eca_service.triton.python_backend")  # as the gateway and Triton do it
    shared = (
        "eca_service.cgroups",
        "eca_service.contract",
        "eca_service.importing",
        "eca_service.leftovers",
        "eca_service.paths",
        *as_served,
    )
    assert {n for n in used if not n.startswith(shared)} == set()


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("prometheus_client", "metrics.py"),
        ("grpc_health", "grpc_server.py"),
        ("simplejpeg", "jpeg.py"),
        ("cykooz_resizer", "resampling.py"),
        ("pydantic_settings", "settings.py"),
        ("httpx", "client/over_http.py"),
        ("opentelemetry", "tracing.py"),
        ("uvloop", "gateway.py"),
        ("onnxruntime", "triton/python_backend/runtimes.py"),
        ("openvino", "triton/python_backend/runtimes.py"),
        ("torch", "triton/python_backend/runtimes.py"),  # in Triton's process, not the gateway's
    ],
)
def test_one_module_per_outside_dependency(package: str, home: str) -> None:
    assert importers(SERVICE, package) == {f"service/eca_service/{home}"}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        (
            "tritonclient",  # the protocol's
            {
                *("backend.py", "fleet.py", "sharing.py", "infer_request.py", "triton/failures.py", "triton/model.py"),
                *("client/over_grpc.py", "framing.py", "grpc_server.py", "oip.py"),
            },
        ),
        ("uvicorn", {"gateway.py", "connections.py"}),
        ("PIL", {"imaging.py", "colours.py", "resampling.py", "confusion.py", "overlay.py"}),  # read, converted, drawn
    ],
)
def test_who_knows_a_dependency_of_several_modules(package: str, homes: set[str]) -> None:
    assert importers(SERVICE, package) == {f"service/eca_service/{home}" for home in homes}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("PIL", {"images.py"}),
        ("safetensors", {"checkpoint.py"}),
        ("click", {f"cli/{name}.py" for name in ("__init__", "compiling", "inspecting", "options")}),
        ("onnxruntime.quantization", {"quantise.py"}),
    ],
)
def test_who_knows_an_outside_dependency_of_the_build(package: str, homes: set[str]) -> None:
    assert importers(BUILD, package) == {f"build/eca_build/{home}" for home in homes}
