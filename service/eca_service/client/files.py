"""Many files, by one model or several: how they are spread over requests, and what becomes of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eca_service.client.answers import Classification
from eca_service.client.failures import ClientError

CONCURRENCY = 16
BATCH = 8  # files in a request: more save little, and each request is answered as a whole
BATCH_BYTES = 8 << 20
IMAGE_S = 5.0  # that the largest networks take for one on a small machine


@dataclass(frozen=True, slots=True)
class FileResult:
    """One model's answer for one file, or the error that it met; `model` is None for the service's default one."""

    path: Path
    model: str | None
    answer: Classification | None = None
    error: ClientError | None = None


def batches(paths: Iterable[str | os.PathLike[str]], size: int) -> Iterator[list[Path]]:
    """The paths in their order, at most `size` and 8 MiB of files at a time; a larger file is alone.

    A text is one path, not as many as it has letters. Raises ValueError where `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a batch has at least one file, not {size}")
    batch: list[Path] = []
    held = 0
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        try:
            length = path.stat().st_size
        except (OSError, ValueError):
            length = 0  # it will be told when it is read
        if batch and (len(batch) == size or held + length > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(path)
        held += length
    if batch:
        yield batch


def patience_s(least_s: float, images: int, concurrency: int) -> float:
    """How long a request of so many images may take where `concurrency` of them share the service."""
    return least_s + IMAGE_S * images * concurrency


def halves(paths: list[Path], found: Iterable[FileResult]) -> list[list[Path]]:
    """The paths as two requests, where the service took them as one for too much; else none."""
    if len(paths) < 2 or not any(one.error and one.error.of_many for one in found):
        return []
    middle = len(paths) // 2
    return [paths[:middle], paths[middle:]]


def joined(
    paths: Sequence[Path], models: Sequence[str], outcome: Sequence[Classification | ClientError] | ClientError
) -> list[FileResult]:
    """What a request came to, file by file, and model by model where there are several.

    `outcome` has an entry for each file, or for each model of the one file; an error of the request is all entries'.
    """
    pairs = [(path, model) for path in paths for model in models or (None,)]
    if isinstance(outcome, ClientError):
        outcome = [outcome.with_traceback(None)] * len(pairs)  # by its frames it would hold the images
    return [
        FileResult(path, model, error=one) if isinstance(one, ClientError) else FileResult(path, one.model, one)
        for (path, model), one in zip(pairs, outcome, strict=True)
    ]


def as_names(model: str | Sequence[str] | None) -> list[str]:
    """The models that are meant: none for the default one, each once."""
    return [model] if isinstance(model, str) else list(dict.fromkeys(model or ()))
