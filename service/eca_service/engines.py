"""A queue in front of every model version's engine, and the golden answers asked through it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eca_service import disk
from eca_service.backend import Triton
from eca_service.batching import Batcher
from eca_service.cancellation import unless_cut_off
from eca_service.contract import GOLDEN_FILE, Contract
from eca_service.errors import ServiceError
from eca_service.registry import Model
from eca_service.tracing import Trace, Tracing
from eca_service.triton.failures import OutOfReach
from eca_service.waiting import Pixels, Row, Tensors

GOLDEN_S = 10.0
LONGEST_S = 60.0  # for golden answers while the engine gives others
GOES_S = 1.0


class Engines:
    """The batchers of all versions in use, made when they are first asked for."""

    def __init__(self, triton: Triton, tracing: Tracing, threads: int = 1) -> None:
        """`threads` are those of an engine on a CPU, where that is known."""
        self._triton = triton
        self._threads = threads
        self._tracing = tracing
        self._batchers: dict[tuple[str, int, str, str], Batcher] = {}
        self._golden_files: dict[tuple[str, int, str, str], bytes] = {}

    def of(self, contract: Contract) -> Batcher:
        """The queue in front of a version's engine."""
        key = _key(contract)
        if key not in self._batchers:

            async def run(
                images: Sequence[Pixels], deadline: float, further: tuple[str, ...], traces: Sequence[Trace]
            ) -> Tensors:
                with self._tracing.infer(traces) as metadata:
                    return await self._triton.infer(images, contract, deadline, further, metadata)

            threads = self._threads if contract.engine == "onnx" else 1
            self._batchers[key] = Batcher(contract.name, run, contract.max_batch, slots=1, threads=threads)
        return self._batchers[key]

    def drop(self, contract: Contract) -> None:
        """Forgets a version that is no longer served."""
        self._batchers.pop(_key(contract), None)
        self._golden_files.pop(_key(contract), None)

    async def golden(self, model: Model, turn: int | None = None) -> None:
        """Asks for the golden images' answers; ServiceError where they are not what the build wrote down, or the engine
        gives none to anybody for GOLDEN_S.

        With a `turn` for that of one of them, each in its turn: beside full batches more make callers wait for a batch.
        """
        contract = model.contract
        images = np.load(io.BytesIO(await self._golden_file(model)))
        expected = np.asarray(contract.golden.probabilities, np.float32)
        if turn is not None:
            one = slice(turn % len(images), turn % len(images) + 1)
            images, expected = images[one], expected[one]
        rows = await self._rows(contract, images)
        got = np.stack([row.probabilities for row in rows])
        difference = float(np.abs(got - expected).max())
        if not difference <= contract.golden.tolerance:
            raise ServiceError(
                "model_not_ready",
                f"a golden image's answer is off by {difference:.1e}, {contract.golden.tolerance:.0e} is allowed",
            )

    async def _golden_file(self, model: Model) -> bytes:
        """Read each time, as it may have been damaged; but as it was before where the version's folder goes with it,
        which is being deleted, or whose file system is gone for the moment: its engine is in Triton's memory.
        """
        key = _key(model.contract)
        try:
            raw = await disk.call((model.folder / GOLDEN_FILE).read_bytes)
        except OSError as error:
            if key in self._golden_files and await _goes(model.folder):
                return self._golden_files[key]
            kind = OutOfReach if isinstance(error, disk.NoAnswer) else ServiceError
            raise kind("model_not_ready", f"{GOLDEN_FILE} cannot be read: {error.strerror}") from None
        if hashlib.sha256(raw).hexdigest() != model.contract.golden.sha256:
            raise ServiceError("model_not_ready", f"{GOLDEN_FILE} is not the file that the build wrote")
        self._golden_files[key] = raw
        return raw

    async def _rows(self, contract: Contract, images: Sequence[Pixels]) -> list[Row]:
        """Before callers' images: how many wait says nothing of the engine, which has time while it answers."""
        totals, deadline = self.of(contract).totals, asyncio.get_running_loop().time() + LONGEST_S
        asked = asyncio.create_task(unless_cut_off(self._ask(contract, images, deadline)))
        try:
            while True:
                batches = totals.batches
                await asyncio.wait({asked}, timeout=GOLDEN_S)
                if asked.done():
                    return await asked
                if totals.batches == batches:
                    detail = f"{contract.name} did not give its golden answers within {GOLDEN_S:.0f} s"
                    raise ServiceError("deadline_exceeded", detail)
        finally:
            asked.cancel()

    async def _ask(self, contract: Contract, images: Sequence[Pixels], deadline: float) -> list[Row]:
        with self.of(contract).turn(len(images), first=True) as turn:
            return [await turn.submit(image, deadline) for image in images]


async def _goes(folder: Path) -> bool:
    """Whether it is not there, now or in GOES_S seconds: one file goes before the other."""
    end = time.monotonic() + GOES_S
    while await disk.is_folder(folder):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


def _key(contract: Contract) -> tuple[str, int, str, str]:
    """A number that was given away anew is another engine's."""
    return contract.name, contract.version, contract.build_key, contract.engine_sha256
