"""A request's way, stage by stage: decode, infer, name the labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eca_service import metrics
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.imaging import Decoded, decode

T = TypeVar("T")


class Backend(Protocol):
    """What runs the engines; see `backend.Triton.infer`."""

    async def infer(self, images: NDArray[np.uint8], contract: Contract, deadline_s: float) -> NDArray[np.float32]:
        """Probabilities float32 [N, K] for uint8 [N, H, W, 3]."""


@dataclass(frozen=True)
class Prediction:
    """One class of one image; `score` is its probability in [0, 1]."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Result:
    """One image's answer: predictions, best first, or the error that this image alone met."""

    predictions: tuple[Prediction, ...] = ()
    warnings: tuple[str, ...] = ()
    error: ServiceError | None = None


@dataclass
class Timing:
    """Seconds spent in each stage of one request."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)

    def lap(self, stage: str, since: float, model: str) -> float:
        """Books the time since `since` to `stage`; returns now."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - since
        metrics.stage_seconds.labels(stage, model).observe(now - since)
        return now

    def milliseconds(self) -> dict[str, float]:
        """decode, queue, infer, total, in milliseconds."""
        shown = {name: round(1000 * self.stages.get(name, 0.0), 3) for name in ("decode", "queue", "infer")}
        return shown | {"total": round(1000 * (time.perf_counter() - self.started), 3)}


async def classify(
    images: Sequence[bytes | ServiceError],
    contract: Contract,
    backend: Backend,
    decoders: Executor,
    *,
    top_k: int,
    max_pixels: int,
    deadline: float,
    timing: Timing,
) -> list[Result]:
    """One Result for each entry of `images`, in their order; an entry that is an error already stays one.

    `deadline` is a time of the event loop's clock. Raises ServiceError where the request as a whole fails.
    """
    loop = asyncio.get_running_loop()
    now = time.perf_counter()

    async def one(image: bytes | ServiceError) -> Decoded | ServiceError:
        if isinstance(image, ServiceError):
            return image
        try:
            return await loop.run_in_executor(decoders, decode, image, contract.preprocessing, max_pixels)
        except ServiceError as error:
            return error

    decoded = await before(deadline, asyncio.gather(*(one(image) for image in images)), "the images were not decoded")
    now = timing.lap("decode", now, contract.name)
    sound = [image for image in decoded if isinstance(image, Decoded)]
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(sound), contract.max_batch):
        batch = np.stack([image.pixels for image in sound[start : start + contract.max_batch]])
        left_s = deadline - loop.time()
        if left_s <= 0:
            raise ServiceError("deadline_exceeded", "the request's deadline passed before its images were classified")
        metrics.batch_size.labels(contract.name).observe(len(batch))
        rows.extend(await backend.infer(batch, contract, left_s))
    now = timing.lap("infer", now, contract.name)
    metrics.images.labels(contract.name).inc(len(sound))
    answers = iter(rows)
    results = [
        Result(best(next(answers), contract.labels, top_k), image.warnings)
        if isinstance(image, Decoded)
        else Result(error=image)
        for image in decoded
    ]
    timing.lap("postprocess", now, contract.name)
    return results


async def before(deadline: float, work: Awaitable[T], otherwise: str) -> T:
    """The result of `work`, which is cancelled at `deadline` (the event loop's clock) with deadline_exceeded."""
    try:
        return await asyncio.wait_for(work, deadline - asyncio.get_running_loop().time())
    except (TimeoutError, asyncio.TimeoutError):
        raise ServiceError("deadline_exceeded", f"{otherwise} before the request's deadline") from None


def best(probabilities: NDArray[np.float32], labels: Sequence[str], k: int) -> tuple[Prediction, ...]:
    """The k most probable classes, best first; probabilities float32 [K]."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return tuple(Prediction(int(index), labels[index], float(probabilities[index])) for index in order)
