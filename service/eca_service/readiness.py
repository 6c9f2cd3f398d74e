"""Whether each model gives its golden answers through the real path; asked at start and ever again."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from collections.abc import Callable

import numpy as np

from eca_service import metrics
from eca_service.backend import Triton
from eca_service.batching import Batcher
from eca_service.contract import GOLDEN_FILE, Contract
from eca_service.errors import ServiceError
from eca_service.registry import Model, Registry

logger = logging.getLogger(__name__)
CHECK_EVERY_S = 5.0
RETRY_EVERY_S = 0.5
GOLDEN_S = 10.0


class Readiness:
    """Loads the models in Triton and keeps asking for their golden answers."""

    def __init__(self, registry: Registry, triton: Triton, batcher: Callable[[Contract], Batcher]) -> None:
        self._registry = registry
        self._triton = triton
        self._batcher = batcher
        self._wake = asyncio.Event()
        self.reasons: dict[str, str] = dict.fromkeys(registry.models, "not asked yet")
        for model in registry.models.values():
            metrics.model_ready.labels(model.contract.name, str(model.contract.version)).set(0)

    @property
    def ready(self) -> bool:
        """Every model golden, and at least one there."""
        return bool(self._registry.models) and not self.reasons

    def is_ready(self, name: str) -> bool:
        """The model gave its golden answers."""
        return name in self._registry.models and name not in self.reasons

    def require(self, name: str) -> None:
        """Raises model_not_ready where the model has not given its golden answers."""
        if name in self.reasons:
            raise ServiceError("model_not_ready", f"{name} is not ready: {self.reasons[name]}")

    def suspect(self) -> None:
        """Asks again at once: a request failed."""
        self._wake.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            for name, model in self._registry.models.items():
                await self._check(name, model)
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), RETRY_EVERY_S if self.reasons else CHECK_EVERY_S)
            except (TimeoutError, asyncio.TimeoutError):
                continue

    async def _check(self, name: str, model: Model) -> None:
        contract = model.contract
        try:
            if name in self.reasons:
                await self._triton.load(contract)
            await golden(model, self._batcher(contract))
        except ServiceError as error:
            if self.reasons.get(name) != error.detail:
                logger.warning("%s is not ready: %s", name, error.detail)
            self.reasons[name] = error.detail
        except Exception as error:  # whatever it is, the model is not ready, and the watch goes on
            reason = f"the check failed: {error!r}"
            if self.reasons.get(name) != reason:
                logger.exception("%s could not be checked", name)
            self.reasons[name] = reason
        else:
            if self.reasons.pop(name, None) is not None:
                logger.info("%s version %d is ready", name, contract.version)
        ready = name not in self.reasons
        metrics.model_ready.labels(contract.name, str(contract.version)).set(ready)


async def golden(model: Model, batcher: Batcher) -> None:
    """Asks for the golden images' answers; ServiceError where they are not what the build wrote down."""
    contract = model.contract
    try:
        raw = (model.folder / GOLDEN_FILE).read_bytes()
    except OSError as error:
        raise ServiceError("model_not_ready", f"{GOLDEN_FILE} cannot be read: {error.strerror}") from None
    if hashlib.sha256(raw).hexdigest() != contract.golden.sha256:
        raise ServiceError("model_not_ready", f"{GOLDEN_FILE} is not the file that the build wrote")
    images = np.load(io.BytesIO(raw))
    expected = np.asarray(contract.golden.probabilities, np.float32)
    caller, deadline = object(), asyncio.get_running_loop().time() + GOLDEN_S
    rows = [await batcher.submit(caller, image, deadline) for image in images]
    got = np.stack([row.probabilities for row in rows])
    difference = float(np.abs(got - expected).max())
    if not difference <= contract.golden.tolerance:
        raise ServiceError(
            "model_not_ready",
            f"a golden image's answer is off by {difference:.1e}, {contract.golden.tolerance:.0e} is allowed",
        )
