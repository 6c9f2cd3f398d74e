"""From one version of a model to another, losing no request: loaded beside, golden, current; then the old unloaded."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import TypeAlias

from eca_service import disk, metrics
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.fleet import Fleet
from eca_service.registry import Model, Registry
from eca_service.triton.failures import NotLoaded, OutOfReach, passes

logger = logging.getLogger(__name__)
TAKE_S = 2.0  # for other versions, until the others are looked at again
TRY_AGAIN_S = 300.0
FIRST_PAUSE_S = 1.0  # where nothing is served instead, doubled each time
READ_S = 60.0  # for a repository of very many models, or a contract of very many classes, on a slow file system
Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


class Rollout:
    """Follows what the repository wants: new versions and models, pins, models taken away; each model by itself.

    A version that does not load or does not give its golden answers is refused, with the reason in the log;
    what was served before serves on. An old version stays loaded for `keep_s` seconds, and for as long as a request
    uses it: other gateways may not have followed yet.
    """

    def __init__(self, registry: Registry, fleet: Fleet, engines: Engines, keep_s: float) -> None:
        self._registry = registry
        self._fleet = fleet
        self._engines = engines
        self._keep_s = keep_s
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retiring: dict[Path, asyncio.Task[None]] = {}  # by folder, what waits to unload it
        self._begun: set[str] = set()  # models of which a version was loaded
        self._refused: dict[Path, tuple[Stamp, float]] = {}  # what its files were like, and when to try again
        self._taking: dict[str, asyncio.Task[None]] = {}  # by model, what loads another version of it
        self._pauses: dict[Path, float] = {}  # until the next try
        self._told: dict[Path, str] = {}  # why, as the log says
        self._empty = False  # the repository shows nothing, and the log says so
        self._silent = False  # it does not answer, and the log says so
        self._looking: asyncio.Task[tuple[dict[str, list[Path]], dict[Path, Stamp]]] | None = None

    async def load(self, model: Model) -> None:
        """Has `model` loaded beside what is being left; in the turn of its name. Raises ServiceError."""
        home, version = model.folder.parent, model.contract.version
        if home.name not in self._begun:
            await self._spare(model)
        slots = await self._fleet.load(model.contract, home, self._versions(home) | {version})
        self._engines.of(model.contract).slots = slots
        self._begun.add(home.name)

    async def _spare(self, model: Model) -> None:
        """Counts the other versions that Triton has as being left: whoever was there before may serve them still."""
        home = model.folder.parent
        for version in await self._fleet.held(home.name) - {model.contract.version}:
            folder = home / str(version)
            try:
                other = None if folder in self._retiring else await disk.call(self._registry.read, folder)
            except disk.NoAnswer as error:
                raise OutOfReach("model_not_ready", f"{home}: {error.strerror}") from None
            if other:
                self._retiring[folder] = asyncio.create_task(self._unload(other))

    def turn(self, name: str) -> asyncio.Lock:
        """Held while Triton is told which versions of the model to have: nobody else tells it meanwhile."""
        return self._turns[name]

    async def refuse(self, model: Model, error: Exception) -> bool:
        """Leaves this version out until its files change, or for five minutes.

        False, and it is tried again at once, where the error says nothing of the version.
        """
        if passes(error) or isinstance(error, NotLoaded):
            return False
        try:
            stamp = await disk.call(_stamp, model.folder)
        except disk.NoAnswer:
            return False
        contract = model.contract
        reason = error.detail if isinstance(error, ServiceError) else f"the check failed: {error!r}"
        if self._told.get(model.folder) != (gist := gist_of(reason)):
            self._told[model.folder] = gist
            logger.error(
                "%s version %d is refused: %s",
                *(contract.name, contract.version, reason),
                exc_info=not isinstance(error, ServiceError),
            )
        alone = self._registry.models.get(contract.name) == model  # then nothing is served in its place
        pause_s = self._pauses.get(model.folder, FIRST_PAUSE_S) if alone else TRY_AGAIN_S
        self._pauses[model.folder] = min(2 * pause_s, TRY_AGAIN_S)
        self._refused[model.folder] = (stamp, time.monotonic() + pause_s)
        metrics.model_refused.labels(contract.name, str(contract.version)).set(1)
        return True

    def accept(self, folder: Path) -> None:
        """It gave its golden answers after all."""
        self._told.pop(folder, None)
        self._no_longer_refused(folder)

    def was_refused(self, folder: Path) -> bool:
        """Whether it is not tried yet again."""
        _, until = self._refused.get(folder, ((), 0.0))
        return time.monotonic() < until

    def _no_longer_refused(self, folder: Path) -> None:
        self._pauses.pop(folder, None)
        if self._refused.pop(folder, None):
            metrics.forget(metrics.model_refused, folder.parent.name, int(folder.name))

    async def follow(self) -> None:
        """Takes over what has changed in the repository since the last time.

        Where that does not answer soon, nothing: what it says is taken over by a later call.
        """
        self._looking = self._looking or asyncio.create_task(disk.call(self._look, patience_s=READ_S))
        done, _ = await asyncio.wait({self._looking}, timeout=disk.PATIENCE_S)
        try:
            if not done:
                raise disk.NoAnswer
            looking, self._looking = self._looking, None
            await self._take_over(*looking.result())
        except disk.NoAnswer:
            if not self._silent:
                logger.warning("%s does not answer; the loaded models are still served", self._registry.repository)
            self._silent = True
            return
        if self._silent:
            logger.info("%s answers again", self._registry.repository)
        self._silent = False

    def _look(self) -> tuple[dict[str, list[Path]], dict[Path, Stamp]]:
        """What the repository wants, and what the files of those that were refused are like now."""
        return self._registry.wanted(), {folder: _stamp(folder) for folder in list(self._refused)}

    async def _take_over(self, targets: dict[str, list[Path]], stamps: dict[Path, Stamp]) -> None:
        for folder, stamp in stamps.items():
            if folder in self._refused and self._refused[folder][0] != stamp:
                self._no_longer_refused(folder)  # it is another one now, or gone
        for name, folders in targets.items():
            if name not in self._taking:
                self._taking[name] = asyncio.create_task(self._take_first(name, folders))
        if self._taking:  # one that loads for long holds up no other
            await asyncio.wait(self._taking.values(), timeout=TAKE_S)
        done = [(name, task) for name, task in self._taking.items() if task.done()]
        for name, _ in done:
            del self._taking[name]
        if not targets:  # it is more likely unmounted than emptied
            if not self._empty:
                logger.warning("%s shows no model; the loaded models are still served", self._registry.repository)
        else:
            for name in self._registry.models.keys() - targets.keys() - self._taking.keys():
                logger.info("%s was taken out of the repository", name)
                self._retire(self._registry.models.pop(name))
        self._empty = not targets
        for _, task in done:
            task.result()

    async def _take_first(self, name: str, folders: list[Path]) -> None:
        """Of versions that are not refused, the first that loads and is golden; none behind the current one."""
        current = self._registry.models.get(name)
        for folder in folders:
            if self.was_refused(folder):
                continue
            if current is not None and current.folder == folder:
                return
            model = await disk.call(self._registry.read, folder, patience_s=READ_S)
            if model is not None and await self._take(model, current):
                return

    async def close(self) -> None:
        """Ends the waiting for old versions; they stay loaded."""
        tasks = [*self._retiring.values(), *self._taking.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, model: Model, current: Model | None) -> bool:
        """Makes `model` current; False where it was refused."""
        contract, home = model.contract, model.folder.parent
        async with self.turn(contract.name):
            try:
                await self.load(model)
                await self._engines.golden(model)
            except Exception as error:  # whatever it is, it is this version's trouble alone
                self._engines.drop(contract)
                if not await self.refuse(model, error):
                    logger.warning("%s version %d is tried again: %s", contract.name, contract.version, error)
                    return True
                await self._fleet.keep(home, self._versions(home))
                return False
            self.accept(model.folder)
            if task := self._retiring.pop(model.folder, None):
                task.cancel()
            self._registry.models[contract.name] = model
            if current:
                self._retire(current)
                if current.folder in self._refused:
                    await self._fleet.keep(home, self._versions(home))
            metrics.model_ready.labels(contract.name, str(contract.version)).set(1)
        logger.info("%s is served in version %d now", contract.name, contract.version)
        return True

    def _retire(self, model: Model) -> None:
        metrics.forget(metrics.model_ready, model.contract.name, model.contract.version)
        if model.folder not in {*self._refused, *self._retiring}:  # the refused one never served
            self._retiring[model.folder] = asyncio.create_task(self._unload(model))

    async def _unload(self, model: Model) -> None:
        """Cancelled where `model` is current again."""
        home = model.folder.parent
        async with self.turn(model.contract.name):
            pass  # what comes in its place may still be loaded there
        await asyncio.sleep(self._keep_s)
        while self._registry.in_use(model) or await self._out_of_sight(home):
            await asyncio.sleep(0.1)
        async with self.turn(model.contract.name):
            try:
                self._engines.drop(model.contract)
                await self._fleet.keep(home, self._versions(home) - {model.contract.version})
            finally:
                self._retiring.pop(model.folder)
        logger.info("%s version %d is unloaded", model.contract.name, model.contract.version)

    async def _out_of_sight(self, home: Path) -> bool:
        """Whether Triton would not find the version that is served either, when it is told which ones to keep."""
        return home.name in self._registry.models and not await disk.is_folder(home)

    def _versions(self, home: Path) -> set[int]:
        """The versions of the model in `home` that Triton must hold: the one served, and those that are being left."""
        folders = {one for one in self._retiring if one.parent == home}
        served = self._registry.models.get(home.name)
        if served and not self.was_refused(served.folder):
            folders.add(served.folder)
        return {int(folder.name) for folder in folders}


def gist_of(reason: str) -> str:
    """The reason without what is another each time, such as the id of a process or of an object."""
    return re.sub(r"[\w-]*\d[\w-]*", "#", reason)


def _stamp(folder: Path) -> Stamp:
    """Changes when a file of the version does, or one beside it: what is copied here comes bit by bit."""
    stamp = []
    for path in sorted((*folder.parent.glob("*"), *folder.glob("*"))):
        try:
            found = path.stat()
        except OSError:  # a link that leads nowhere, which Triton cannot read: it counts, until it has gone
            stamp.append((0, 0, 0))
        else:
            stamp.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamp)
