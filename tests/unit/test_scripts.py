"""Every script that a person runs explains itself: --help, a text for each option, sentences for wrong arguments."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("build", "deploy", "service", "tests")
SCRIPTS = (  # as the pages and their own first lines have them
    "-m deploy.capacity",
    "-m deploy.grafana.render",
    "-m deploy.scaling",
    "-m service.docs.screenshot",
    "deploy/grafana/generate.py",
    "deploy/sbom.py",
    "service/docs/write_errors.py",
)


def options() -> Iterator[tuple[str, set[str | None]]]:
    """Where an option is declared, in click or argparse, and its keywords."""
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in {"option", "add_argument"}:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", {keyword.arg for keyword in node.keywords}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python, from the repository's root."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_option_has_a_help_text() -> None:
    found = dict(options())
    assert len(found) > 100
    silent = [place for place, keywords in found.items() if not keywords & {"help", "hidden", None}]
    assert [place for place in silent if "chromium.py" not in place] == []  # the browser's, no command's


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_text_and_nothing_else_is_done(script: str) -> None:
    """sbom.py took --help for an image, and ended in a trace."""
    done = run(*script.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["deploy/sbom.py"], "Missing argument 'IMAGE'"),
        (["deploy/sbom.py", "--privileged"], "No such option"),
        (["-m", "deploy.capacity"], "Missing argument 'PHOTOGRAPHS...'"),
        (["-m", "deploy.capacity", "nowhere.jpg"], "File 'nowhere.jpg' does not exist"),
        (["-m", "deploy.capacity", "--repository", "nowhere", "README.md"], "Directory 'nowhere' does not exist"),
        (["-m", "deploy.grafana.render", "--seconds", "1"], "1.0 is not in the range x>=30"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
