"""Where and how figures were measured; it stands in every file of a report."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
PACKAGES = ("onnxruntime", "torch", "tritonclient", "nvidia-pytriton", "uvicorn", "fastapi", "pillow", "numpy")


class Written(click.Path):
    """An option's file that is written at the end: refused at once where it could not be, not after minutes."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            self.fail(f"{path.parent} is no folder that can be written to", param, ctx)
        return path


def environment(images: str) -> dict[str, str]:
    """Machine, versions, commit, command, and the load that others put on the machine when it began."""
    facts = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([Path(sys.executable).name, *_module_command()]),
        "commit": _git("rev-parse", "--short", "HEAD") + (" with changes" if _git("status", "--porcelain") else ""),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load at the start": f"{os.getloadavg()[0]:.1f} (1 minute)",
        "images": images,
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def busy(facts: dict[str, str]) -> str:
    """Why the figures are provisional, in a sentence: others kept the machine busy when it began. Empty otherwise."""
    load, cores = float(facts["load at the start"].split()[0]), int(facts["cores"])
    if load < 0.5 * cores:
        return ""
    return f"Others kept {load:.1f} of {cores} cores busy or waiting when this began: its figures are provisional."


def _module_command() -> list[str]:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    return ["-m", name, *sys.argv[1:]]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
