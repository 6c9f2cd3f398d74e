"""What an image costs the gateway, as deploy/capacity.py measures it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.capacity import request_s
from tests.integration.conftest import ROOT


def test_settings_of_another_service_do_not_change_what_is_measured(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECA_WORKERS", "2")  # whose time is not the process's own
    assert 1e-4 < request_s(repository) < 0.1


def test_what_is_no_image_is_a_sentence() -> None:
    command = [sys.executable, "-m", "deploy.capacity", "README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be decoded: the" in done.stderr
