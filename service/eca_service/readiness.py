"""Whether each model gives its golden answers through the real path; asked at start and ever again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from eca_service import disk, metrics
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.fleet import Fleet
from eca_service.integrity import for_callers
from eca_service.peers import Peers
from eca_service.registry import Model, Registry
from eca_service.rollout import READ_S, Rollout, gist_of
from eca_service.triton.failures import passes

T = TypeVar("T")
logger = logging.getLogger(__name__)
CHECK_EVERY_S = 5.0
FOLLOW_EVERY_S = 1.0
RETRY_EVERY_S = 0.5
CHECK_S = 2.0  # for all models; who takes longer is looked at again later


class Readiness:
    """Loads the models in Triton, keeps asking for their golden answers, and follows the repository."""

    def __init__(self, registry: Registry, fleet: Fleet, engines: Engines, rollout: Rollout, peers: Peers) -> None:
        self._registry = registry
        self._peers = peers
        self._fleet = fleet
        self._engines = engines
        self._rollout = rollout
        self._wake = asyncio.Event()
        self._reasons: dict[Path, str] = {}  # as callers are told
        self._golden: set[Path] = set()  # what once gave its golden answers
        self._known = self._served()  # when last followed
        self._checking: dict[Path, asyncio.Task[None]] = {}
        self._unreachable = False  # no Triton was, when last asked, and the log says so
        for model in registry.models.values():
            self._reasons[model.folder] = "not asked yet"
            if peers.others_listen:
                continue  # by whom it is ready or not, until this worker knows
            metrics.model_ready.labels(model.contract.name, str(model.contract.version)).set(0)

    @property
    def reasons(self) -> dict[str, str]:
        """Why a model is not ready, by name; empty where all are."""
        models = self._registry.models
        return {name: self._reasons[one.folder] for name, one in models.items() if one.folder in self._reasons}

    @property
    def ready(self) -> bool:
        """Every model golden, and at least one there."""
        return bool(self._registry.models) and not self.reasons

    def is_ready(self, name: str) -> bool:
        """The model gave its golden answers."""
        return name in self._registry.models and self._registry.models[name].folder not in self._reasons

    def require(self, model: Model) -> None:
        """Raises model_not_ready where the model has not given its golden answers."""
        if reason := self._reasons.get(model.folder):
            raise ServiceError("model_not_ready", f"{model.contract.name} is not ready: {reason}")

    def suspect(self) -> None:
        """Asks again at once: a request failed."""
        self._wake.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        try:
            await self._watch()
        finally:
            for task in self._checking.values():
                task.cancel()
            await asyncio.gather(*self._checking.values(), return_exceptions=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        next_check, turn = 0.0, 0
        while True:
            added = await _attempt(self._fleet.look(), "it could not be found out which Tritons there are")
            await self._follow()  # first: what was taken out of the repository has no golden images to be asked
            if added or self._wake.is_set() or loop.time() >= next_check:
                all_images = added or self._wake.is_set()
                self._wake.clear()
                turn += 1
                await self._check_all(None if all_images else turn)
                next_check = loop.time() + (RETRY_EVERY_S if self._hopes() else CHECK_EVERY_S)
            self._peers.tell(self.ready)
            try:
                await asyncio.wait_for(self._wake.wait(), RETRY_EVERY_S if self._hopes() else FOLLOW_EVERY_S)
            except (TimeoutError, asyncio.TimeoutError):
                continue

    async def _check_all(self, turn: int | None) -> None:
        """Begins to check every model but those that are still being checked: one that loads for long, or whose engine
        hangs, holds up no other.
        """
        for model in self._registry.models.values():
            if model.folder not in self._checking:
                self._checking[model.folder] = task = asyncio.create_task(self._check(model, turn))
                task.add_done_callback(lambda _, folder=model.folder: self._checking.pop(folder))  # type: ignore[misc]
        if self._checking:
            await asyncio.wait(self._checking.values(), timeout=CHECK_S)

    def _hopes(self) -> bool:
        """Whether a model that is not ready may be at any moment."""
        return any(not self._rollout.was_refused(self._registry.models[name].folder) for name in self.reasons)

    async def _follow(self) -> None:
        await _attempt(self._rollout.follow(), "the repository could not be followed")
        now = self._served()
        self._golden |= now - self._known  # it was asked for all of its golden answers
        self._known = now
        self._reasons = {folder: reason for folder, reason in self._reasons.items() if folder in now}

    def _served(self) -> set[Path]:
        return {model.folder for model in self._registry.models.values()}

    async def _check(self, model: Model, turn: int | None) -> None:
        contract, name = model.contract, model.contract.name
        told = ""
        if model.folder in self._reasons and self._rollout.was_refused(model.folder):
            return  # to load it would take as long, and fail, again
        try:
            if not (own := self._rollout.turn(name)).locked():  # else Triton is being told which versions to have
                async with own:
                    await self._rollout.load(model)
            await self._engines.golden(model, None if model.folder in self._reasons else turn)
        except Exception as error:  # whatever it is, the model is not ready, and the watch goes on
            if self._left(model):
                return
            reason = error.detail if isinstance(error, ServiceError) else f"the check failed: {error!r}"
            told = for_callers(reason, model.folder)
            if gist_of(self._reasons.get(model.folder, "")) != gist_of(told):
                self._log(name, reason, error)
            self._reasons[model.folder] = told
            await _attempt(self._doubt(model, error), f"{name} is not ready, and why could not be found out")
        else:
            if self._left(model):
                return
            self._unreachable = False
            self._golden.add(model.folder)
            self._rollout.accept(model.folder)
            if self._reasons.pop(model.folder, None) is not None:
                logger.info("%s version %d is ready", name, contract.version)
        if not self._left(model):
            metrics.model_ready.labels(name, str(contract.version)).set(not told)
        self._peers.tell(self.ready)  # at once: this worker says so from now on

    def _left(self, model: Model) -> bool:
        """Whether another version took its place meanwhile, or none."""
        return self._registry.models.get(model.contract.name) != model

    async def _doubt(self, model: Model, error: Exception) -> None:
        """Takes another version's engine under that number, or leaves out one that never was golden."""
        if not passes(error) and await self._renewed(model):
            logger.warning(
                "%s version %d was built again under the same number", model.contract.name, model.contract.version
            )
            self._engines.drop(model.contract)
            self._golden.discard(model.folder)
        elif model.folder not in self._golden and await self._rollout.refuse(model, error):
            self._wake.set()  # another is taken while this one is left out

    async def _renewed(self, model: Model) -> bool:
        try:
            return await disk.call(self._registry.renew, model, patience_s=READ_S)
        except disk.NoAnswer:
            return False

    def _log(self, name: str, reason: str, error: Exception) -> None:
        """Once for all models where there is no Triton, which before any was ready is about to start."""
        if not isinstance(error, ServiceError) or error.code != "backend_unavailable":
            logger.warning("%s is not ready: %s", name, reason, exc_info=not isinstance(error, ServiceError))
        elif not self._unreachable:
            level = logging.WARNING if self._golden else logging.INFO
            logger.log(level, "no model is ready: Triton Inference Server is not reachable yet; waiting for it")
            self._unreachable = True


async def _attempt(call: Coroutine[Any, Any, T], failed: str) -> T | None:
    """What `call` returns; whatever it raises is for the log, behind the sentence `failed`: the watch goes on."""
    try:
        return await call
    except Exception:
        logger.exception("%s", failed)
        return None
