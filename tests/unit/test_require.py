"""`--require gpu` turns the skips that hide a hole into failures, and no others; what a GPU's tests need beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = """
import pytest
from tests.conftest import NO_GPU

@pytest.mark.parametrize("reason", [NO_GPU, "another reason"])
def test_it(reason):
    pytest.skip(reason)
"""


@pytest.mark.parametrize(("options", "outcome"), [([], "2 skipped"), (["--require", "gpu"], "1 failed, 1 skipped")])
def test_a_required_skip_fails(tmp_path: Path, options: list[str], outcome: str) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(TEST)
    quick = ["-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:hypothesispytest"]
    command = ["-m", "pytest", "-q", "-p", "tests.conftest", *quick, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, "-c", "/dev/null", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout, done.stdout + done.stderr


WARNS = """
import warnings
from tests.gpu.test_on_a_gpu import pytestmark

def test_it():
    warnings.warn("PyTorch's exporter will be another", FutureWarning)
"""


def test_a_machine_with_a_gpu_may_lack_a_plugin_and_warn(tmp_path: Path) -> None:
    """Without pytest-asyncio all ended before the first test, and each package that was compiled failed its own."""
    pytest.importorskip("triton", reason="needs the extra `plugin`")
    file = tmp_path / "test_it.py"
    file.write_text(WARNS)
    command = ["-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, *command, "--rootdir", str(tmp_path), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["eca_build", "eca_plugin", "eca_service"])
def test_a_machine_with_a_gpu_may_have_nothing_of_ours_installed(pytestconfig: pytest.Config, package: str) -> None:
    assert any((ROOT / home / package).is_dir() for home in pytestconfig.getini("pythonpath"))
