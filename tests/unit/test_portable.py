"""What measure.py tells of TensorRT-RTX's engines: the builder is the real one, no engine runs without a GPU."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

from eca_build import tensorrt_rtx, tensorrt_worker
from eca_build.errors import BuildError

from tests.gpu import networks, portable
from tests.gpu.report import Report, Row
from tests.unit.test_measure import dry_run
from tests.unit.test_tensorrt_plan import LACKING_NAMES

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs the extra `tensorrt-rtx`")


@needs_rtx
def test_tensorrt_rtx_s_engines_are_built_and_its_runtime_says_why_none_runs(tmp_path: Path) -> None:
    found = dry_run(tmp_path, ["rtx"])
    assert not any([*found["notes_of"].values(), *found["failed_of"].values()])
    rows = {row["variant"]: row for row in found["sections"]["rtx"]}
    assert list(rows) == [
        f"{network}, {target}"
        for network in ("baseline", "ECA plain", "ECA fused")
        for target in ("portable", "for this GPU")
    ]
    for variant, row in rows.items():
        assert (row["network"], row["batch"], row["runs"]) == ("tiny", 1, "no")
        could_not = "run" if variant.endswith("portable") else "build"
        assert row["why not"].startswith(f"TensorRT-RTX could not {could_not} the engine: ")
        if variant != "ECA fused, for this GPU":  # there, without a driver, the builder itself aborts
            assert "Cuda Runtime" in row["why not"]
    assert not list(tmp_path.glob("rtx-*"))


def test_where_tensorrt_rtx_is_missing_one_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx_libs.py").touch()  # no package, and so no libraries
    monkeypatch.syspath_prepend(str(tmp_path))
    report = Report(tmp_path, {})
    assert list(portable.measure(["tiny"], 1, "fp32", tmp_path, report, time.monotonic() + 60)) == []
    assert len(report.notes) == 1
    assert "pip install 'eca-serve[tensorrt-rtx]'" in report.notes[0]
    monkeypatch.setattr(portable, "NEEDS", ("json", "no_such_module"))
    assert list(portable.measure(["tiny"], 1, "fp32", tmp_path, report, time.monotonic() + 60)) == []
    assert report.notes[1:] == ["TensorRT-RTX's engines: not installed here: no_such_module"]


@needs_rtx
@pytest.mark.parametrize(
    ("wrong_by", "timed", "expected"),
    [
        (0.0, True, {"runs": "yes", "right": "yes", "ms": 2.0, "p10": 1.0, "p90": 3.0}),
        (0.1, True, {"runs": "yes", "right": "NO", "ms": 2.0, "p10": 1.0, "p90": 3.0}),
        (0.0, False, {"runs": "yes", "right": "yes", "why not": "no capture"}),
    ],
)
def test_what_an_engine_answers_is_compared_whether_it_could_be_timed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_by: float, timed: bool, expected: Row
) -> None:
    """On a stand-in for the process that runs the engine on a GPU."""
    model = portable.prepare("tiny", networks.Variant("eca", "fused"), 2, "fp32", tmp_path)

    def run(command: Sequence[str], failure: str) -> str:
        if "eca_build.tensorrt_rtx" in command[2]:
            return builds(command, failure)
        np.save(command[-1], model.expected + np.float32(wrong_by))
        if not timed:
            raise BuildError("no capture")
        return "2e-3 1e-3 3e-3\n"

    builds = tensorrt_rtx.run
    monkeypatch.setattr(tensorrt_rtx, "run", run)
    found = portable.attempt(model, tensorrt_rtx.CHIPS)
    assert found.pop("largest difference") == pytest.approx(wrong_by, abs=1e-6)
    assert found == pytest.approx(expected)


@needs_rtx
def test_every_name_of_tensorrt_rtx_s_that_running_uses_is_in_its_bindings() -> None:
    source = "".join(inspect.getsource(one) for one in (portable._run, tensorrt_worker.read, tensorrt_worker.bind))
    used = set(re.findall(r"\btrt\.([\w.]*\w)", source))
    objects = {
        "runtime": "Runtime",
        "plan": "ICudaEngine",
        "config": "IRuntimeConfig",
        "context": "IExecutionContext",
    }
    used |= {f"{kind}.{name}" for word, kind in objects.items() for name in re.findall(rf"\b{word}\.(\w+)", source)}
    assert len(used) > 12
    command = [sys.executable, "-c", LACKING_NAMES, "tensorrt_rtx_bindings", *sorted(used)]
    assert tensorrt_rtx.run(command, "the bindings could not be looked at") == "[]\n"
