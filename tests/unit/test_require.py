"""`--require gpu` turns the skips that hide a hole into failures, and no others."""

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
