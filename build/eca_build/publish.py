"""Puts a finished version into a model repository: staged beside it, then visible by one atomic rename."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from eca_service.contract import CONTRACT_FILE, GOLDEN_FILE

from eca_build.errors import BuildError
from eca_build.triton_config import interface

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"


def versions(repository: Path, name: str) -> list[int]:
    """The published versions of a model, ascending."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch("[0-9]+", path.name))


def _resolved(repository: Path) -> Path:
    """What a link leads to, for what is beside that."""
    with suppress(OSError, RuntimeError):  # RuntimeError until Python 3.13, which leaves an endless link as it is
        root = repository.resolve()
        if not root.is_symlink():
            return root
    raise BuildError(f"the model repository {repository} cannot be found: its symbolic links form a loop")


def require_utf8(repository: Path) -> None:
    """BuildError where the repository's path is in another encoding, in which no runtime finds a file."""
    root = str(_resolved(repository))
    try:
        root.encode("utf-8")
    except UnicodeEncodeError:
        raise BuildError(
            f"the model repository {root} has a name that is not in UTF-8; rename it or give another"
        ) from None


@contextmanager
def staging(repository: Path, note: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """An empty folder on the repository's file system, outside of what Triton reads; gone at the end.

    Only one build at a time stages for a repository, so what a killed one left is removed here; `note` is told where
    another one is waited for. Raises BuildError
    where the repository cannot be written, is a disk of its own, or where a file of the build cannot be.
    """
    root = _resolved(repository)
    folder = root.parent / f".{root.name}.staging"
    with _writing(repository):
        root.mkdir(parents=True, exist_ok=True)
        if root.stat().st_dev != root.parent.stat().st_dev:
            raise BuildError(
                f"the model repository {repository} is a mount point, but versions are made beside the repository and "
                f"then renamed into it; give a folder inside, --repository {repository / 'models'}"
            )
        lock = os.open(root, os.O_RDONLY)  # a lock on the folder itself leaves no lock file behind
    try:
        with _writing(repository):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"another build publishes into {repository}; waiting until it has ended")
                fcntl.flock(lock, fcntl.LOCK_EX)
        try:  # only who has the lock removes: the folder is another build's until then
            with _writing(repository):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            yield folder
        except OSError as error:
            # the folder that Python found for temporary files; on a full disk it may have found none, and that is told
            where = _place(error) or f"in {root.parent} or {tempfile.tempdir or 'where temporary files are'}"
            why = error.strerror or f"{error}; is a disk full?"
            raise BuildError(f"the build could not read or write a file: {where}: {why}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def publish(staged: Path, repository: Path, name: str, version: int) -> Path:
    """Makes `staged` (config.pbtxt, labels.txt and the version's folder) visible as repository/name/version.

    A first version comes with its whole model folder in one rename, a later one with its own folder alone. Raises
    BuildError where something of the version is missing, where the repository cannot be written, and as `check`.
    """
    target = repository / name
    for part in (CONFIG_FILE, LABELS_FILE, *(f"{version}/{own}" for own in (CONTRACT_FILE, GOLDEN_FILE, "model.*"))):
        if not any(staged.glob(part)):
            raise BuildError(f"{part} of {name} disappeared while it was built; build again")
    with _writing(repository):
        for path in staged.rglob("*"):
            if not path.is_dir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        check(target, {file_name: (staged / file_name).read_text("utf-8") for file_name in (CONFIG_FILE, LABELS_FILE)})
        if (target / CONFIG_FILE).exists():
            os.rename(staged / str(version), target / str(version))
        else:
            os.rename(staged, target)
    return target / str(version)


def require_writable(home: Path) -> None:
    """BuildError where this account may put no version of the model into its folder `home`, or there none at all."""
    place = home if home.exists() else home.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise BuildError(f"{place} cannot be written by the account that builds, so no version can be published there")


def restore(staged: Path, home: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Writes what the model in `home` has not of `files`, its texts by their files' names; gives their names."""
    gone = tuple(name for name in files if not (home / name).exists())
    for name in gone:
        (staged / name).write_text(files[name], encoding="utf-8")
        os.rename(staged / name, home / name)
    return gone


def check(home: Path, files: Mapping[str, str]) -> None:
    """Raises BuildError where the model in `home` is served with other texts than these, by their files' names.

    Tensors cannot change under callers; how the model is served stays as it is there. BuildError too for a folder of
    that name that is no model, or lacks one of the files.
    """
    if not (home / CONFIG_FILE).exists():
        if home.exists() and any(home.iterdir()):
            raise BuildError(f"{home} is not a model, it has no {CONFIG_FILE}; remove it or give another --name")
        return
    for file_name, text in files.items():
        if not (home / file_name).exists():
            raise BuildError(f"{home} has no {file_name}, with which it is served; restore it or give another --name")
        there = (home / file_name).read_text("utf-8", "replace")
        same = interface(there, home) == interface(text, home) if file_name == CONFIG_FILE else there == text
        if not same:
            raise BuildError(
                f"the new version's {file_name} differs from the one that {home.name} is served with; give the same "
                "options as before (--labels, --expose-gates, --target, --crop, --max-batch), or another --name"
            )


@contextmanager
def _writing(repository: Path) -> Iterator[None]:
    """Within it an OSError is a BuildError about the repository."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"the model repository {repository} cannot be written: {_place(error) or repository}: {error.strerror}"
        ) from None


def _place(error: OSError) -> str | None:
    """The file that it is about; of a rename the new name, for the old one is in a folder of ours."""
    place: str | None = error.filename2 or error.filename
    return place
