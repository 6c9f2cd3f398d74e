"""Exact class activation maps: what each place of the last feature map adds to a class's logit.

With global average pooling and a linear head no gradient is needed (Zhou et al., arXiv 1512.04150; ECA-Net, figure 4):
the logit of class c is bias[c] + mean over the places of sum_k weight[c, k] * features[k].
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eca_service.contract import ContractError, read
from eca_service.errors import ServiceError
from eca_service.integrity import for_callers

KEPT_BYTES = 512 << 20  # sixty heads of 1000 classes and 2048 channels; of 21,841 three: plain, SE and ECA


@dataclass(frozen=True)
class LinearHead:
    """A classifier: `weight` float32 [K, C], `bias` float32 [K]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class ClassMap:
    """`values` float64 [h, w]: what each place adds to the logit; their sum is `logit` - `bias`."""

    values: NDArray[np.float64]
    logit: float
    bias: float


class Heads:
    """Those asked for last, as many as fit into `room` bytes, and the very last one in any case."""

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room = room
        self._kept: dict[tuple[Path, str], LinearHead] = {}  # the last one asked for is its last
        self._turn = threading.Lock()

    def of(self, folder: Path, engine_sha256: str) -> LinearHead:
        """The head of the version in `folder`, read when it is first asked for; the hash tells versions apart.

        Raises bad_parameter where the contract has none; model_not_ready where it cannot be read, or is another
        build's.
        """
        key = folder, engine_sha256
        with self._turn:  # to read one takes several times its bytes
            head = self._kept.pop(key, None) or _read(folder, engine_sha256)
            self._kept[key] = head
            while len(self._kept) > 1 and sum(one.weight.nbytes for one in self._kept.values()) > self._room:
                del self._kept[next(iter(self._kept))]
        return head


def _read(folder: Path, engine_sha256: str) -> LinearHead:
    try:
        contract = read(folder, head=True)
    except ContractError as error:
        raise ServiceError("model_not_ready", for_callers(str(error), folder)) from None
    if contract.engine_sha256 != engine_sha256:
        version = f"{folder.parent.name} version {folder.name}"
        raise ServiceError("model_not_ready", f"{version} was replaced while being served; publish it as a new one")
    head = contract.head
    if head is None:  # no waiting helps
        raise ServiceError("bad_parameter", f"{contract.name} has no classifier in its contract; build it again")
    weight, bias = (np.frombuffer(base64.b64decode(part), "<f4") for part in (head.weight, head.bias))
    return LinearHead(weight.reshape(head.classes, head.channels), bias)


def class_map(features: NDArray[np.float32], head: LinearHead, index: int) -> ClassMap:
    """The map of class `index` from one image's features, [C, h, w]."""
    channels, height, width = features.shape
    shares = head.weight[index].astype(np.float64) @ features.reshape(channels, -1) / (height * width)
    bias = float(head.bias[index])
    return ClassMap(shares.reshape(height, width), float(shares.sum()) + bias, bias)
