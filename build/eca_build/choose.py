"""Builds every engine that would do, keeps those that verified, measures them, and takes the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from eca_service.cgroups import cores
from eca_service.contract import Candidate, Choice, Verification
from numpy.typing import NDArray

from eca_build import measure
from eca_build.engine import Engine, Maker
from eca_build.errors import BuildError
from eca_build.measure import Runnable, Speed
from eca_build.targets import Variant, kind_of

MARGIN = 1.03  # what is faster by less may be noise, and the plainer engine is served


@dataclass(frozen=True)
class Verified:
    """An engine whose answers are near enough to the network's; `home` holds what of it is published."""

    variant: Variant
    home: Path
    engine: Engine
    figures: Verification


def fastest(
    variants: Sequence[Variant],
    maker: Maker,
    folder: Path,
    verify: Callable[[Variant, Engine], Verification],
    sample: NDArray[np.uint8],
    step: Callable[[str], None],
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Verified, Choice | None]:
    """The engine to serve, and why; of one variant alone there is no choice.

    Each is built in a folder of its own below `folder`. `verify` raises BuildError for an engine that is to be refused.
    Of several, those that cannot be built, are refused or cannot be measured are left out, and `note` is told of the
    last, which should not be; BuildError where none is left.
    """
    verified: list[Verified] = []
    refused: dict[Variant, str] = {}
    for index, variant in enumerate(variants):
        home = folder / str(index)
        home.mkdir()
        try:
            engine = maker.make(variant, home, step)
            verified.append(Verified(variant, home, engine, verify(variant, engine)))
        except BuildError as error:
            if len(variants) == 1:
                raise
            refused[variant] = str(error)
    if len(variants) == 1:
        return verified[0], None
    if not verified:
        raise BuildError(
            f"none of {len(variants)} engines could be built; the first, {variants[0]}: {refused[variants[0]]}"
        )
    speeds = [Speed({}, 1.0)]
    if len(verified) > 1:
        step("measure")
        speeds, failed = _measured(verified, sample, variants[0].max_batch)
        for one, why in failed:
            refused[one.variant] = why
            note(f"{one.variant} is left out: {why}")
        verified = [one for one in verified if one.variant not in refused]
    chosen = pick([speed.relative for speed in speeds])
    rates = {one.variant: speed for one, speed in zip(verified, speeds, strict=True)}
    candidates = tuple(_candidate(variant, rates.get(variant), refused.get(variant)) for variant in variants)
    why = _why(verified, speeds, chosen)
    return verified[chosen], Choice(why=why, machine=measure.machine(), threads=cores(), candidates=candidates)


def _measured(
    verified: Sequence[Verified], sample: NDArray[np.uint8], max_batch: int
) -> tuple[list[Speed], list[tuple[Verified, str]]]:
    """The speeds of the engines that can be measured, in their order, and the others with the reasons.

    All are measured in one process, which one of them may end: then each is tried alone, and those that run are
    measured again. Raises BuildError where each runs alone, or none does.
    """
    runnables = [
        Runnable(kind_of(one.variant.target, one.variant.runtime), one.variant.precision, str(one.engine.file))
        for one in verified
    ]
    try:
        return measure.measure(runnables, sample, max_batch), []
    except BuildError:
        failed: dict[int, str] = {}
        for index, runnable in enumerate(runnables):
            try:
                measure.measure([runnable], sample, max_batch, rounds=1)
            except BuildError as error:
                failed[index] = str(error)
        if len(failed) in (0, len(runnables)):
            raise
    sound = [runnable for index, runnable in enumerate(runnables) if index not in failed]
    return measure.measure(sound, sample, max_batch), [(verified[index], why) for index, why in failed.items()]


def pick(relative: Sequence[float]) -> int:
    """Which engine to serve, by speed: the first, so the plainest, of those about as fast as the fastest."""
    return next(index for index, speed in enumerate(relative) if speed * MARGIN >= max(relative))


def _candidate(variant: Variant, speed: Speed | None, refused: str | None) -> Candidate:
    return Candidate(
        runtime=variant.runtime,
        precision=variant.precision,
        attention_graph=variant.attention_graph,
        frontend=variant.frontend,
        images_per_s=(speed and speed.images_per_s) or None,
        relative=round(speed.relative, 3) if speed else None,
        refused=refused,
    )


def _why(verified: Sequence[Verified], speeds: Sequence[Speed], chosen: int) -> str:
    if len(verified) == 1:
        return "the only one that could be built and run"
    fastest = max(range(len(speeds)), key=lambda index: speeds[index].relative)
    if fastest == chosen:
        return f"the fastest of {len(verified)} verified engines"
    lead = speeds[fastest].relative / speeds[chosen].relative - 1
    return (
        f"of {len(verified)} verified engines the fastest, {verified[fastest].variant}, leads by {lead:.1%} alone, "
        "which may be noise; this one is plainer"
    )
