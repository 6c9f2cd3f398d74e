"""Compares an engine on disk with the PyTorch network, the engine in a new process of its own.

    python -m eca_build.verify ENGINE IMAGES.npy ANSWERS.npy

is that process: it needs no torch, so nothing of the build can leak into the engine's answers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from eca_service.contract import INPUT, PROBABILITIES, Verification
from numpy.typing import NDArray

from eca_build.errors import BuildError

RUNNER = (sys.executable, "-m", "eca_build.verify")


def answers(engine: Path, images: NDArray[np.uint8], runner: Sequence[str] = RUNNER) -> NDArray[np.float32]:
    """The engine's probabilities, float32 [N, K], for uint8 [N, H, W, 3], from a new process, `runner`.

    Raises BuildError with the process's last line where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="eca-verify-") as folder:
        source, target = Path(folder, "images.npy"), Path(folder, "answers.npy")
        np.save(source, images)
        command = [*runner, str(engine), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise BuildError(f"the engine {engine.name} could not be run from disk: {last}")
        result: NDArray[np.float32] = np.load(target)
        return result


def compare(
    expected: NDArray[np.float32], got: NDArray[np.float32], tolerance: float, least_agreement: float, source: str
) -> Verification:
    """The figures of one comparison; both arrays are probabilities [N, K].

    Raises BuildError, with the figures, where a probability differs by more than `tolerance`, or where top-1 is the
    same on less than `least_agreement` of the images, 1 being all.
    """
    if got.shape != expected.shape or not np.isfinite(got).all():
        raise BuildError(f"the engine answered {got.shape} with values that are not all finite; nothing was published")
    agreement = float((got.argmax(1) == expected.argmax(1)).mean())
    difference = float(np.abs(got - expected).max())
    if agreement < least_agreement or difference > tolerance:
        raise BuildError(
            f"the engine disagrees with the network: top-1 agreement {agreement:.2%}, largest probability difference "
            f"{difference:.2e} on {len(got)} images, where {least_agreement:.0%} and {tolerance:.0e} are asked; "
            "nothing was published"
        )
    return Verification(
        source=source, images=len(got), top1_agreement=agreement, largest_difference=difference, tolerance=tolerance
    )


def _run(engine: str, source: str, target: str, batch: int = 32) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
    images = np.load(source)
    parts = [
        session.run([PROBABILITIES], {INPUT: images[start : start + batch]})[0]
        for start in range(0, len(images), batch)
    ]
    np.save(target, np.concatenate(parts))


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2], sys.argv[3])
