"""The names of a network's classes."""

from __future__ import annotations

from pathlib import Path

from eca_build.errors import BuildError


def read_labels(path: Path | None, classes: int, random: bool = False) -> tuple[str, ...]:
    """One label a line, as many as there are classes, else BuildError; without a file, numbered ones.

    Those of a network with random weights say so, and real names for its classes are refused.
    """
    if random:
        if path is not None:
            raise BuildError(
                f"the weights are random, for latency only, and {path} cannot name their classes; leave --labels out"
            )
        return tuple(f"random weights, for latency only: {index}" for index in range(classes))
    if path is None:
        return tuple(f"class {index}" for index in range(classes))
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except OSError as error:
        raise BuildError(f"the labels file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BuildError(f"the labels file {path} is not in UTF-8; save it in that") from None
    labels = tuple(line.strip() for line in text.split("\n") if line.strip())
    if len(labels) != classes:
        raise BuildError(
            f"{path} has {len(labels)} labels, the checkpoint has {classes} classes; give one label a line"
        )
    return labels
