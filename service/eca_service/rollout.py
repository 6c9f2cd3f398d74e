"""From one version of a model to another, losing no request: loaded beside, golden, current; then the old unloaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from eca_service import metrics
from eca_service.backend import Triton
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.registry import Model, Registry, wanted
from eca_service.triton.failures import passes

logger = logging.getLogger(__name__)
TRY_AGAIN_S = 300.0


class Rollout:
    """Follows what the repository wants: new versions and models, pins, models taken away.

    A version that does not load or does not give its golden answers is refused, with the reason in the log;
    what was served before serves on. An old version stays loaded for `keep_s` seconds, and for as long as a request
    uses it: other gateways may not have followed yet.
    """

    def __init__(self, registry: Registry, triton: Triton, engines: Engines, keep_s: float) -> None:
        self._registry = registry
        self._triton = triton
        self._engines = engines
        self._keep_s = keep_s
        self._retiring: dict[str, list[Model]] = {}
        self._refused: dict[Path, tuple[int, float]] = {}  # what the folder was like, and when to try again
        self._tasks: set[asyncio.Task[None]] = set()

    def versions(self, model: Model) -> set[int]:
        """The versions of `model`'s name that Triton must hold: this one, and those that are being left."""
        old = self._retiring.get(model.contract.name, [])
        return {model.contract.version, *(one.contract.version for one in old if one.folder.exists())}

    def refuse(self, model: Model, error: ServiceError) -> None:
        """Leaves this version out until its folder changes, or for five minutes."""
        contract = model.contract
        if not self._was_refused(model.folder):
            logger.error("%s version %d is refused: %s", contract.name, contract.version, error.detail)
        self._refused[model.folder] = (_stamp(model.folder), time.monotonic() + TRY_AGAIN_S)
        metrics.model_ready.labels(contract.name, str(contract.version)).set(0)

    def accept(self, model: Model) -> None:
        """It gave its golden answers after all."""
        self._refused.pop(model.folder, None)

    async def follow(self) -> None:
        """Takes over what has changed in the repository since the last time."""
        targets = wanted(self._registry.repository)
        for name, folders in targets.items():
            current = self._registry.models.get(name)
            for folder in folders:
                if current is not None and current.folder == folder and not self._was_refused(folder):
                    break
                model = None if self._was_refused(folder) else self._registry.read(folder)
                if model is not None and await self._take(model, current):
                    break
        if targets:  # a repository that shows nothing at all is more likely unmounted than emptied
            for name in self._registry.models.keys() - targets.keys():
                logger.info("%s was taken out of the repository", name)
                self._retire(self._registry.models.pop(name))

    async def close(self) -> None:
        """Ends the waiting for old versions; they stay loaded."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, model: Model, current: Model | None) -> bool:
        """Makes `model` current; False where it was refused."""
        contract = model.contract
        if current and self._was_refused(current.folder):
            current = None  # it never served
        versions = self.versions(model) | ({current.contract.version} if current else set())
        try:
            slots = await self._triton.load(contract, model.folder.parent, versions)
            self._engines.of(contract).slots = slots
            await self._engines.golden(model)
        except ServiceError as error:
            self._engines.drop(contract)
            if passes(error):
                return True  # it says nothing of the version, which is tried again
            self.refuse(model, error)
            await self._triton.keep(model.folder.parent, versions - {contract.version})
            return False
        self._registry.models[contract.name] = model
        metrics.model_ready.labels(contract.name, str(contract.version)).set(1)
        logger.info("%s is served in version %d now", contract.name, contract.version)
        self._retiring[contract.name] = [m for m in self._retiring.get(contract.name, []) if m.folder != model.folder]
        if current:
            self._retire(current)
        return True

    def _retire(self, model: Model) -> None:
        self._retiring.setdefault(model.contract.name, []).append(model)
        task = asyncio.create_task(self._unload(model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unload(self, model: Model) -> None:
        await asyncio.sleep(self._keep_s)
        while self._registry.in_use(model):
            await asyncio.sleep(0.1)
        name, home = model.contract.name, model.folder.parent
        retiring = self._retiring.get(name, [])
        if model not in retiring:
            return  # it is current again
        retiring.remove(model)
        self._engines.drop(model.contract)
        metrics.forget(metrics.model_ready, name, model.contract.version)
        left = {one.contract.version for one in _present(self._registry.models.get(name), *retiring)}
        await self._triton.keep(home, left)
        logger.info("%s version %d is unloaded", name, model.contract.version)

    def _was_refused(self, folder: Path) -> bool:
        stamp, until = self._refused.get(folder, (0, 0.0))
        return stamp == _stamp(folder) and time.monotonic() < until


def _present(*models: Model | None) -> Iterable[Model]:
    return (model for model in models if model is not None)


def _stamp(folder: Path) -> int:
    """Changes when the folder's list of files does."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
