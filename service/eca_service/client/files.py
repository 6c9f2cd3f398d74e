"""Many files: how they are spread over requests, and what becomes of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eca_service.client.answers import Classification
from eca_service.client.failures import ClientError

CONCURRENCY = 16
BATCH = 8  # files in a request: more save little, and each request is answered as a whole
BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file's answer, or the error that it alone met."""

    path: Path
    answer: Classification | None = None
    error: ClientError | None = None


def batches(paths: Iterable[str | os.PathLike[str]], size: int) -> Iterator[list[Path]]:
    """The paths in their order, at most `size` and 8 MiB of files at a time; a larger file is alone.

    Raises ValueError where `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a batch has at least one file, not {size}")
    batch: list[Path] = []
    held = 0
    for path in map(Path, paths):
        try:
            length = path.stat().st_size
        except OSError:
            length = 0  # it will be told when it is read
        if batch and (len(batch) == size or held + length > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(path)
        held += length
    if batch:
        yield batch


def joined(paths: list[Path], outcome: list[Classification | ClientError] | ClientError) -> list[FileResult]:
    """What a request for these files came to, file by file; an error of the request is every file's."""
    if isinstance(outcome, ClientError):
        return [FileResult(path, error=outcome) for path in paths]
    return [
        FileResult(path, error=one) if isinstance(one, ClientError) else FileResult(path, one)
        for path, one in zip(paths, outcome, strict=True)
    ]
