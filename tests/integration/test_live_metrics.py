"""Every metric that a rule or dashboard names is one that the running service, or Triton, really shows."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tritonclient.grpc as triton
from eca_service import metrics
from eca_service.triton import server

from tests.deploy.observed import labels_asked_for, metrics_asked_for
from tests.integration.callers import call
from tests.integration.conftest import FRESH, MODEL, ROOT, Service
from tests.ports import free_port

DOG = ROOT / "build" / "demo" / "images" / "dog-1.jpg"
# from Triton's documentation: they are shown where there is a GPU
GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage"}
GPU |= {"nv_gpu_power_limit"}


def names(exposition: str) -> set[str]:
    """The names under which a scrape's series are stored: each family's, with the suffixes of its type."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    families = re.findall(r"^# TYPE (\S+) (\w+)", exposition, re.MULTILINE)
    samples = set(re.findall(r"^([A-Za-z_:][\w:]*)[{ ]", exposition, re.MULTILINE))
    return samples | {family + suffix for family, kind in families for suffix in suffixes.get(kind, [""])}


def lacking(samples: list[metrics.Sample], prefix: str) -> dict[str, set[str]]:
    """By metric, the labels that are asked for and that no sample has; of metrics that have samples."""
    shown: dict[str, set[str]] = {}
    for sample in samples:
        shown.setdefault(sample.name, set()).update(sample.labels)
    asked = {name: labels for name, labels in labels_asked_for().items() if name in shown and name.startswith(prefix)}
    assert len(asked) >= 4
    return {name: labels - shown[name] for name, labels in asked.items() if labels - shown[name]}


def refuse_some(service: Service) -> None:
    """Asks for more at once than may be in flight, so that the series of refusals are there."""
    image = DOG.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: call("rest", service, MODEL, [image] * 60).code, range(8)))
    assert "overloaded" in codes


def test_the_service_shows_what_is_asked_for(service: Service) -> None:
    answer = FRESH.post(service.url + "/v1/classify", content=DOG.read_bytes())
    assert answer.status_code == 200
    refuse_some(service)
    asked = {name for name in metrics_asked_for() if name.startswith("eca_")}
    scrape = FRESH.get(service.url + "/metrics").text
    assert len(asked) > 10
    without_tls = {"eca_tls_certificate_expiry_timestamp_seconds"}
    assert asked - names(scrape) == without_tls
    samples = metrics.parse(scrape)
    absent = {"eca_engine_mismatch", "eca_model_refused"}
    assert asked - without_tls - {sample.name for sample in samples} == absent, "which a healthy service has none of"
    assert lacking(samples, "eca_") == {}
    for stage in ("decode", "queue", "infer"):
        assert re.search(rf'eca_stage_seconds_count{{model="{MODEL}",stage="{stage}"}} [1-9]', scrape)


def test_triton_shows_what_is_asked_for(repository: Path, tmp_path: Path) -> None:
    """The embedded binary, with its metrics opened for once."""
    grpc_port, port = free_port(), free_port()
    server.assemble_backends(tmp_path / "backends")
    binary = server.installation() / "bin" / "tritonserver"
    command = server.command(binary, tmp_path / "backends", repository, grpc_port, f"eca_triton_m{port}_")
    command.remove("--allow-metrics=false")
    command += ["--metrics-address=127.0.0.1", f"--metrics-port={port}", f"--load-model={MODEL}"]
    with (tmp_path / "log").open("wb") as log:
        environment = server.environment(1, tmp_path, tmp_path / "backends")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        client = triton.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        for _ in range(300):
            try:
                if client.is_model_ready(MODEL):
                    break
            except triton.InferenceServerException:
                assert process.poll() is None, (tmp_path / "log").read_text()
            process_wait(process, 0.1)
        text = FRESH.get(f"http://127.0.0.1:{port}/metrics").text
        shown = names(text)
        client.close()
    finally:
        process.terminate()
        process.wait(30)
    asked = {name for name in metrics_asked_for() if name.startswith("nv_")}
    assert asked >= GPU
    assert asked - GPU - shown == set()
    # Triton's text is of the older format, which has no end mark
    series = re.findall(r"^(nv_\w+){(.*)} \S+$", text, re.MULTILINE)
    samples = [metrics.Sample(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), 0) for name, labels in series]
    assert lacking(samples, "nv_") == {}


def process_wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits a little, or less where the process ends."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
