"""The files that a person means, and how far the work on them is."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import click
from tqdm import tqdm

from eca_service.client import ClientError

T = TypeVar("T")
PIPED = Path("-")  # the image that comes by standard input
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def expand(given: Iterable[Path]) -> list[Path]:
    """Files as they are, folders by the images below them, patterns by what they match; each file once.

    Raises UsageError where a folder or a pattern holds no image; a file that does not exist is told when it is read.
    """
    found: dict[Path, None] = {}
    for path in given:
        if os.path.isdir(path):
            matches = below(path)
        elif not os.path.exists(path) and glob.has_magic(str(path)):
            matches = sorted(filter(_is_file, set(_matching(str(path)))))
        else:
            matches = [path]
        if not matches:
            raise click.UsageError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
        found |= dict.fromkeys(matches)
    return list(found)


def piped() -> bytes:
    """The image that comes by standard input. Raises ClientError, code `unreadable`."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ClientError("unreadable", f"standard input: {error.strerror}") from None


def below(folder: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, linked ones too but each once, by name.

    Raises UsageError where one cannot be read.
    """
    found = (
        Path(root, name)
        for root, names in _folders(folder, _refuse)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    )
    return sorted(filter(_is_file, found))


def _folders(top: str | Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[tuple[str, list[str]]]:
    """`top` and the folders below with their files' names; each once, by whatever links it is reached, none above."""
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(top, onerror=onerror, followlinks=True):
        here = _identity(root)
        if not seen:
            seen = set(map(_identity, Path(top).absolute().parents)) - {here}
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders.sort()
        yield root, names


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _matching(pattern: str) -> Iterator[Path]:
    """What a pattern matches. For ** glob itself would follow links that lead back until the path is too long."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    at = parts.index("**")
    rest = "/".join(parts[at + 1 :]) or "*"
    for start in glob.glob("/".join([*parts[:at], ""])) if at else ["."]:
        for root, _ in _folders(start):
            if not any(name.startswith(".") for name in Path(os.path.relpath(root, start)).parts):
                yield from _matching(os.path.join(glob.escape(root), rest))


def _is_file(path: Path) -> bool:
    """So is what may not be looked at: it is told when it is read."""
    try:
        return path.is_file()
    except OSError:
        return True


def _refuse(error: OSError) -> None:
    raise click.UsageError(f"{error.filename} cannot be read: {error.strerror}")


def watched(work: Iterable[T], total: int, unit: str) -> Iterator[T]:
    """`work`, with a progress bar where a person looks and sees nothing else: errors on a terminal, output not."""
    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    yield from tqdm(work, total=total, unit=unit, disable=hidden, leave=False)


def tell(line: str) -> None:
    """Writes a line to standard error, above the bar where one is shown."""
    tqdm.write(line, sys.stderr)
