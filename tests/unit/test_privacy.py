"""A build reports to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnxruntime_reports_to_nobody_unless_told_to(given: dict[str, str], expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | given
    code = "import os, sys, eca_build; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"], "before onnxruntime is imported"


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed here")
def test_openvino_reports_to_nobody() -> None:
    """What converts models there tells Google of every import, also of one that asks what the processor can."""
    code = "import sys; from eca_build.sessions import computes_bf16; computes_bf16(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openvino" in done.stdout.split()
    assert "openvino_telemetry" not in done.stdout.split()
