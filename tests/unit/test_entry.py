"""Where the console scripts begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IMPORTED = """\
import pathlib, time
here = pathlib.Path(__file__).parent
(here / "begun").touch()
while not (here / "go").exists():
    time.sleep(0.01)
raise SystemExit(7)
"""
SCRIPTS = ("eca_service.entry", "eca_build.entry")


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_modules_are_imported(tmp_path: Path, script: str, ignored: bool) -> None:
    """It ends without a word; a shell's background job ignores it, as all that is started in it."""
    (tmp_path / "click.py").write_text(IMPORTED)
    before = "SIG_IGN" if ignored else "default_int_handler"
    code = f"import signal; signal.signal(signal.SIGINT, signal.{before}); import {script} as entry; entry.main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        if ignored:
            time.sleep(0.2)
            (tmp_path / "go").touch()
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (7 if ignored else -signal.SIGINT, b"")


def test_the_scripts_begin_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for script in SCRIPTS:
        assert f'"{script}:main"' in text
        assert callable(import_module(script).main)


def test_no_temporary_folder_stays(tmp_path: Path) -> None:
    """PyTorch's compiler makes one as it is imported; what another program has put into it stays."""
    begin = "import sys, eca_build.entry as entry; sys.argv[1:] = ['inspect', 'build/demo/resnet14-eca.safetensors']; "
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def inspect(code: str = "entry.main()") -> None:
        subprocess.run([sys.executable, "-c", begin + code], cwd=ROOT, env=environment, check=True, capture_output=True)

    inspect()
    assert not list(tmp_path.iterdir())
    inspect("from eca_build.cli import main; main()")
    (made,) = tmp_path.iterdir()
    (made / "another's").touch()
    inspect()
    assert list(made.iterdir()) == [made / "another's"]
