"""Several models on one image, which is decoded once for all whose recipes agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from eca_service.admission import Permit, require_short
from eca_service.answers import Answer
from eca_service.cancellation import all_of
from eca_service.contract import Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.geometry import Box, Size, crop_box
from eca_service.imaging import Decoded
from eca_service.registry import Model, Registry

ATTENTIONS = ("none", "se", "eca")  # as the paper's tables have them; others follow by name


@dataclass(frozen=True, slots=True)
class Compared:
    """What one model says, or the error that it alone met; `crop` is what it saw, in pixels of the upright image."""

    contract: Contract
    answer: Answer | None = None
    crop: Box | None = None
    error: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All models' answers, in the order asked for; `size` is the upright image's, `orientation` EXIF's number."""

    entries: list[Compared]
    size: Size
    orientation: int
    warnings: tuple[str, ...]
    total_s: float


def family(registry: Registry) -> list[Model]:
    """The default model and those that differ from it in the attention alone, one for each: plain, SE, ECA, others.

    Raises model_not_found where nothing is served.
    """
    default = registry.get(None)
    own = default.contract
    found: dict[str, Model] = {}
    for _, model in sorted(registry.models.items()):
        contract = model.contract
        if (contract.architecture, contract.labels) == (own.architecture, own.labels):
            found.setdefault(contract.attention, model)
    found[own.attention] = default
    order = {attention: place for place, attention in enumerate(ATTENTIONS)}
    return [found[attention] for attention in sorted(found, key=lambda name: (order.get(name, len(order)), name))]


def require_any(core: Core, models: Sequence[Model], deadline: float) -> None:
    """Raises what the first model can be told before the body is read, where none of them could answer."""
    errors = []
    for model in models:
        try:
            core.require(model, deadline)
        except ServiceError as error:
            errors.append(error)
    if len(errors) == len(models):
        raise errors[0].anew()


async def compare(
    core: Core, models: Sequence[Model], image: bytes, counts: Sequence[int], deadline: float, permit: Permit
) -> Comparison:
    """Each model's answer, of its `counts` best classes.

    Raises bad_request for too many predictions, what decoding raises; and where every model fails, the first one's
    error.
    """
    require_short(len(models), sum(counts))
    entry = permit.entry
    entry.images = len(models)
    permit.grow(images=len(models) - 1)
    core.access.charge(entry.account, len(models) - 1)
    seen: dict[str, tuple[Decoded, float]] = {}
    for model in models:
        recipe = model.contract.preprocessing_fingerprint
        if recipe not in seen:
            seen[recipe] = await core.decoders.decode(image, model.contract, entry)

    async def one(model: Model, top_k: int) -> Compared:
        contract = model.contract
        begun = time.perf_counter()
        decoded, decode_s = seen[contract.preprocessing_fingerprint]
        try:
            core.require(model, deadline)
            with core.suspicious():
                row = await core.engines.of(contract).submit(decoded.pixels, deadline, trace=entry.trace)
            result = core.named(contract, row, top_k, decoded, decode_s, entry)
        except ServiceError as error:
            return Compared(contract, error=error.anew())  # as in Core.classify
        answer = Answer(contract, [result], decode_s + time.perf_counter() - begun)
        return Compared(contract, answer, crop_box(decoded.size, contract.preprocessing))

    entries = await all_of(one(model, top_k) for model, top_k in zip(models, counts, strict=True))
    if all(entry.error for entry in entries):
        assert entries[0].error is not None
        raise entries[0].error.anew()
    decoded, _ = next(iter(seen.values()))
    return Comparison(entries, decoded.size, decoded.orientation, decoded.warnings, entry.answered())
