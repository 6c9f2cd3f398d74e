"""The dashboards, drawn from a short real run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.stack import ROOT


@pytest.mark.large
def test_dashboards_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="it is in the extra `pictures`")
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed; it is Debian's package `prometheus`")
    command = [sys.executable, "-m", "deploy.grafana.render", "--seconds", "30", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("service", "triton"):
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 50_000
