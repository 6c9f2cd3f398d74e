"""NVIDIA's own load generator, as it is, against the gateway over both protocols and against the embedded Triton."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import statistics
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from eca_service.triton.server import installation

from tests.integration.conftest import MODEL, ROOT, Service
from tests.load.generator import closed_loop
from tests.load.protocols import GatewayGrpc

WHEEL = "tritonclient==2.50.0"  # the last whose binary runs with glibc 2.35


@pytest.fixture(scope="session")
def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The program out of tritonclient's wheel, and its environment; both are kept under .cache/.

    The two libraries that it needs beside come with the embedded Triton, under names of their own.
    """
    cache = ROOT / ".cache" / "perf_analyzer"
    program = cache / "perf_analyzer"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        pip += ["--platform=manylinux1_x86_64", "--dest", str(cache), WHEEL]
        done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=120)
        wheels = list(cache.glob("tritonclient-*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"perf_analyzer cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("/bin/perf_analyzer"))
            program.with_suffix(".part").write_bytes(wheel.read(name))
        program.with_suffix(".part").chmod(0o755)
        program.with_suffix(".part").rename(program)
        wheels[0].unlink()
    libraries = installation().parents[1] / "nvidia_pytriton.libs"
    for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
        (cache / name).unlink(missing_ok=True)
        (cache / name).symlink_to(next(libraries.glob(pattern)))
    environment = os.environ | {"LD_LIBRARY_PATH": f"{cache}:{libraries}"}
    done = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, check=False)
    if "cannot open shared object" in done.stderr or "GLIBC" in done.stderr:
        pytest.skip(f"perf_analyzer does not run here: {done.stderr.strip()}")
    return program, environment


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Real images."""
    return [path.read_bytes() for path in sorted((ROOT / "build" / "demo" / "images").iterdir())[:12]]


@pytest.fixture(scope="module")
def photographs(images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as its --input-data: bytes as they travel, each behind its length."""
    rows = [{"image": {"b64": base64.b64encode(struct.pack("<I", len(i)) + i).decode()}} for i in images]
    file = tmp_path_factory.mktemp("perf") / "images.json"
    file.write_text(json.dumps({"data": rows}))
    return file


def measured(program: tuple[Path, dict[str, str]], folder: Path, *arguments: object) -> dict[str, float]:
    """Its table's row for two callers; fails where it met an error."""
    table = folder / "table.csv"
    command = [program[0], "-m", MODEL, "--concurrency-range", 2, "--request-count", 200, "-f", table, *arguments]
    done = subprocess.run(
        list(map(str, command)), env=program[1], capture_output=True, text=True, check=False, timeout=60
    )
    text = done.stdout + done.stderr
    assert "error" not in text.lower(), text
    assert table.exists(), text
    row = next(csv.DictReader(table.read_text().splitlines()))
    return {name: float(value) for name, value in row.items() if value}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_against_the_gateway(
    service: Service, perf_analyzer: tuple[Path, dict[str, str]], photographs: Path, tmp_path: Path, protocol: str
) -> None:
    address = f"127.0.0.1:{service.grpc_port}" if protocol == "grpc" else service.url.removeprefix("http://")
    given = ("-i", protocol, "-u", address, "--input-data", photographs, "--shape", "image:1")
    assert measured(perf_analyzer, tmp_path, *given)["Inferences/Second"] > 10


def test_against_triton(service: Service, perf_analyzer: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    address = f"127.0.0.1:{service.triton_port}"
    assert measured(perf_analyzer, tmp_path, "-i", "grpc", "-u", address, "-b", 4)["Inferences/Second"] > 10


@pytest.mark.quiet
async def test_its_figures_and_those_of_our_load_tests_agree(
    service: Service,
    perf_analyzer: tuple[Path, dict[str, str]],
    images: list[bytes],
    photographs: Path,
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{service.grpc_port}"
    given = ("-i", "grpc", "-u", address, "--input-data", photographs, "--shape", "image:1")
    way, theirs, ours = GatewayGrpc(address, images), [], []
    for _ in range(3):  # in turns, so that what else the machine does hurts both alike
        # Not its images/s: with --request-count it counts whole seconds, so that 200 answers in 1.2 s are 100/s.
        row = await asyncio.to_thread(measured, perf_analyzer, tmp_path, *given)
        theirs.append(row["p50 latency"] / 1e6)
        block = await closed_loop(way, MODEL, 2, 30, len(images), most=200)
        assert block.failures == {}
        ours.append(statistics.median(block.latencies_s))
    await way.close()
    assert 0.67 < statistics.median(ours) / statistics.median(theirs) < 1.5, (ours, theirs)
