"""Compares an engine on disk with the PyTorch network, the engine in a new process of its own.

    python -m eca_build.verify KIND PRECISION ENGINE IMAGES.npy ANSWERS.npy

is that process (KIND as in `sessions`): for a CPU it needs no torch, so nothing of the build can leak into the answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from eca_service.contract import Verification
from numpy.typing import NDArray

from eca_build import processes
from eca_build.errors import BuildError
from eca_build.scratch import scratch
from eca_build.sessions import Kind, open_session


def runner(kind: Kind, precision: str = "fp32") -> list[str]:
    """The command of a process that answers for engines of `kind`, without its last three arguments."""
    return [*processes.module("eca_build.verify"), kind, precision]


RUNNER = runner("onnxruntime")
MOST_LOST = 0.005  # of the accuracy
LEAST_CORRELATION = 0.25  # bf16 has 0.90 and more, int8 0.49: both on random MobileNets, which round worst
ALIKE = 1e-6  # probabilities that float32 hardly tells apart
LEAST_TOLD = 1e-20  # of a probability: below float32 has fewer digits
BATCH = 32


def answers(engine: Path, images: NDArray[np.uint8], command: Sequence[str] = RUNNER) -> NDArray[np.float32]:
    """The engine's probabilities, float32 [N, K], for uint8 [N, H, W, 3], from a new process, `command`.

    Raises BuildError as `processes.run` where it fails.
    """
    with scratch("verify") as folder:
        source, target = folder / "images.npy", folder / "answers.npy"
        np.save(source, images)
        whole = [*command, str(engine), str(source), str(target)]
        processes.run(whole, f"the engine {engine.name} could not be run from disk")
        result: NDArray[np.float32] = np.load(target)
        return result


def require_finite(expected: NDArray[np.float32]) -> None:
    """BuildError where the network's own answers are not finite: it has no ranges, and every comparison is false."""
    if not np.isfinite(expected).all():
        raise BuildError(
            "the network itself answers values that are not finite; the training diverged, or --std is too "
            "small; use another file, or what it was trained with"
        )


def compare(
    expected: NDArray[np.float32],
    got: NDArray[np.float32],
    tolerance: float,
    least_agreement: float,
    source: str,
    classes: NDArray[np.int64] | None = None,
) -> Verification:
    """The figures of one comparison; both arrays are probabilities [N, K], those `expected` finite, `classes` [N] with
    -1 for unknown.

    Raises BuildError, with the figures, where a probability differs by more than `tolerance`, where top-1 is the same
    on less than `least_agreement` of the images, 1 being all, or where accuracy falls by more than half a point beyond
    what chance explains: twice the standard error of the difference, which few images make large. BuildError too where
    the answers do not follow the network's from image to image: where these are close together, such as over a thousand
    classes of random weights, what always answers the same is within `tolerance`.
    """
    if got.shape != expected.shape or not np.isfinite(got).all():
        raise BuildError(f"the engine answered {got.shape} with values that are not all finite; nothing was published")
    best, wanted = got.argmax(1), expected.argmax(1)
    agreement = float((best == wanted).mean())
    difference = float(np.abs(got - expected).max())
    if agreement < least_agreement or difference > tolerance:
        asked = f"{least_agreement:.0%} and {tolerance:.0e} are" if tolerance < 1 else f"{least_agreement:.0%} is"
        raise BuildError(
            f"the engine disagrees with the network: top-1 agreement {agreement:.2%}, largest probability difference "
            f"{difference:.2e} on {len(got)} images, where {asked} required; nothing was published"
        )
    if (followed := correlation(expected, got)) < LEAST_CORRELATION:
        raise BuildError(
            f"the engine does not follow the network: their correlation is {followed:.2f} over {len(got)} images, "
            f"where {LEAST_CORRELATION} is required; nothing was published"
        )
    figures = Verification(
        source=source,
        images=len(got),
        top1_agreement=agreement,
        least_agreement=least_agreement,
        largest_difference=difference,
        tolerance=tolerance,
    )
    if classes is None or not (known := classes >= 0).any():
        return figures
    here, there = (best == classes)[known], (wanted == classes)[known]
    chance = 2 * float((here != there).sum()) ** 0.5 / len(here)
    if there.mean() - here.mean() > MOST_LOST + chance:
        raise BuildError(
            f"the engine is less accurate than the network: {here.sum()} of {len(here)} images right, where the "
            f"network has {there.sum()}; nothing was published"
        )
    return figures.model_copy(
        update={
            "labelled": len(here),
            "accuracy": float(here.mean()),
            "reference_accuracy": float(there.mean()),
        }
    )


def rounding(answers: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """How far float32 rounds a network's answers, both [N, K]: the largest difference from `exact`, relative to it.

    That is how far logits are off, which many answers tell alike. A probability moves by a quarter of it at most: an
    engine within this is as good as float32, or its logits are off by four times as much.
    """
    told = exact > LEAST_TOLD
    return float((np.abs(answers - exact)[told] / exact[told]).max())


def correlation(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """How far `got` follows `expected`, both [N, K], from image to image, -1 to 1; 1 where there is nothing to follow.

    Of images all alike: from class to class.
    """
    if np.ptp(expected) <= ALIKE:
        return 1.0
    apart = np.ptp(expected, axis=0).max() > ALIKE
    here, there = (
        x - (x.mean(0) if apart else x.mean()) for x in (got.astype(np.float64), expected.astype(np.float64))
    )
    sizes = float(np.linalg.norm(here) * np.linalg.norm(there))
    return float((here * there).sum()) / sizes if sizes else 0.0


def _run(kind: str, precision: str, engine: str, source: str, target: str) -> None:
    session = open_session(kind, precision, Path(engine))  # type: ignore[arg-type]
    images = np.load(source)
    np.save(target, np.concatenate([session(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]))


if __name__ == "__main__":
    _run(*sys.argv[1:6])
