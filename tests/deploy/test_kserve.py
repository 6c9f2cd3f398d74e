"""KServe's runtime: its pod is valid, and its Triton outlives its gateway."""

from __future__ import annotations

import http.server
import subprocess
import threading
from functools import partial
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from eca_service.grpc_server import GRACE_S
from eca_service.settings import Settings

from tests.deploy.chart import KSERVE, KUBERNETES


class Quiet(http.server.SimpleHTTPRequestHandler):
    """It writes no log."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_kserve_s_pod_is_valid() -> None:
    runtime, service = yaml.safe_load_all(KSERVE.read_text())
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)
    assert runtime["spec"]["containers"][0]["name"] == "kserve-container"
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]


def test_kserve_s_triton_outlives_its_gateway(tmp_path: Path) -> None:
    """All of a pod's containers are asked to end at once; for five seconds each request was `model_not_ready`."""
    runtime, service = yaml.safe_load_all(KSERVE.read_text())
    gateway, triton = runtime["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in gateway["env"]}
    ending_s = (int(environment["ECA_DRAIN_DELAY_MS"]) + Settings.model_fields["grace_ms"].default) / 1000 + GRACE_S
    assert ending_s < service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    *shell, script = triton["lifecycle"]["preStop"]["exec"]["command"]
    (tmp_path / "livez").touch()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as alive:
        threading.Thread(target=alive.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{alive.server_address[1]}"
        assert "127.0.0.1:8080" in script
        with subprocess.Popen([*shell, script.replace("127.0.0.1:8080", address)]) as hook:
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(3)
            alive.shutdown()
            alive.server_close()
            assert hook.wait(10) == 0
