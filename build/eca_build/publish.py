"""Puts a finished version into a model repository: staged beside it, then visible by one atomic rename."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eca_build.errors import BuildError

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"


def versions(repository: Path, name: str) -> list[int]:
    """The published versions of a model, ascending."""
    folder = repository / name
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder on the repository's file system, outside of what Triton reads; gone at the end.

    Only one build at a time stages for a repository, so what a killed one left is removed here. Raises BuildError
    where the repository cannot be written.
    """
    root = repository.absolute()
    folder = root.parent / f".{root.name}.staging"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY)  # a lock on the folder itself leaves no lock file behind
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise BuildError(f"the model repository {repository} cannot be written: {error.strerror}") from None


def publish(staged: Path, repository: Path, name: str, version: int) -> Path:
    """Makes `staged` (config.pbtxt, labels.txt and the version's folder) visible as repository/name/version.

    A first version comes with its whole model folder in one rename, a later one with its own folder alone; its
    config.pbtxt must then be the one already served, else BuildError: tensors cannot change under callers.
    """
    target = repository / name
    for path in (staged, *staged.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if not target.exists():
        os.rename(staged, target)
    else:
        for file_name in (CONFIG_FILE, LABELS_FILE):
            if (staged / file_name).read_bytes() != (target / file_name).read_bytes():
                raise BuildError(
                    f"the new version's {file_name} differs from the one that {name} is served with; "
                    "publish it under another --name"
                )
        os.rename(staged / str(version), target / str(version))
    return target / str(version)
