"""Why a model answers as it does: the class activation map of one image, and the attention's gates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eca_service import disk
from eca_service.admission import Permit
from eca_service.answers import Answer, Prediction, Result
from eca_service.class_map import ClassMap, LinearHead, class_map
from eca_service.contract import CONTRACT_FILE, FEATURES, GATES, Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.geometry import Box, crop_box
from eca_service.imaging import Decoded
from eca_service.labels import class_index
from eca_service.registry import Model

HEAD_S = 20.0  # to read the largest one


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of one block's attention, one for each channel: float32 [C], each in (0, 1)."""

    block: str
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One image's map for `explained`, a class with its probability, beside the ordinary answer.

    `crop` is what the network saw, in pixels of the upright image.
    """

    answer: Answer
    explained: Prediction
    map: ClassMap
    crop: Box
    decoded: Decoded
    gates: tuple[Gates, ...] = ()

    @property
    def result(self) -> Result:
        """The best classes, as a classification gives them."""
        return self.answer.results[0]


async def explain(
    core: Core,
    model: Model,
    image: bytes,
    wanted: str | None,
    deadline: float,
    permit: Permit,
    *,
    top_k: int = 1,
    gates: bool = False,
    preview_px: int = 0,
) -> Explanation:
    """The map of the class `wanted`, an index or a label; None is the best class.

    Raises bad_parameter for a class, gates or a classifier that the model has not, what decoding raises, and what
    inference raises.
    """
    contract, entry = model.contract, permit.entry
    entry.images = 1
    index = None  # to offer the nearest of 20,000 labels takes a second
    if wanted is not None:
        index = await core.decoders.aside(class_index, contract.labels, wanted, contract.name)
    if gates and not contract.gates:
        raise ServiceError(
            "bad_parameter",
            f"{contract.name} exposes no gates; build it with --expose-gates, if its attention has one gate per channel"
            if contract.attention != "none"
            else f"{contract.name} has no attention, and so no gates",
        )
    with core.suspicious():
        head = await _head(core, model)
        decoded, decode_s = await core.decoders.decode(image, contract, entry, preview_px)
        further = (FEATURES, GATES) if gates else (FEATURES,)
        row = await core.engines.of(contract).submit(decoded.pixels, deadline, further, entry.trace)
    result = core.named(contract, row, top_k, decoded, decode_s, entry)
    if index is None:
        index = result.predictions[0].index
    return Explanation(
        Answer(contract, [result], entry.answered()),
        Prediction(index, contract.labels[index], float(row.probabilities[index])),
        class_map(row.further[FEATURES], head, index),
        crop_box(decoded.size, contract.preprocessing),
        decoded,
        _by_block(contract, row.further[GATES]) if gates else (),
    )


async def _head(core: Core, model: Model) -> LinearHead:
    try:
        return await disk.call(core.heads.of, model.folder, model.contract.engine_sha256, patience_s=HEAD_S)
    except disk.NoAnswer as error:
        raise ServiceError("backend_unavailable", f"{CONTRACT_FILE} cannot be read: {error.strerror}") from None


def _by_block(contract: Contract, gates: NDArray[np.float32]) -> tuple[Gates, ...]:
    """From the engine's one row, [sum of channels], to each site's own."""
    ends = np.cumsum([site.channels for site in contract.gates])[:-1]
    return tuple(Gates(site.block, part) for site, part in zip(contract.gates, np.split(gates, ends), strict=True))
