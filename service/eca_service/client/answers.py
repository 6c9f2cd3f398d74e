"""What the service answers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image; `score` is its probability in [0, 1]."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of an image that the network saw, in pixels of the image as it is shown, from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Classification:
    """One model's answer for one image: `predictions`, best first.

    `timing_ms` has the stages decode, queue, infer and total, where the protocol tells them; `warnings` what was done
    to the image, such as "exif_rotated".
    """

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    warnings: tuple[str, ...] = ()
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    request_id: str = ""

    @property
    def best(self) -> Prediction:
        """The most probable class."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a class: `map`, h rows of w numbers, is what each place of `crop` adds to the class's logit.

    The numbers add up to `logit` - `bias`. `gates` has the attention's gates by block, where they were asked for.
    """

    model: str
    version: int
    explained: Prediction
    map: tuple[tuple[float, ...], ...]
    logit: float
    bias: float
    crop: Crop
    predictions: tuple[Prediction, ...]
    gates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A map drawn over its image, as a PNG; `explained` is the class whose map it is."""

    png: bytes
    explained: Prediction
    version: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served; `contract` is all that is known of it, as `GET /v1/models/{model}` answers."""

    name: str
    version: int
    architecture: str
    attention: str
    labels: tuple[str, ...]
    contract: Mapping[str, Any]


def classification(body: Mapping[str, Any], row: Mapping[str, Any]) -> Classification:
    """`row` is one of the results in `body`."""
    return Classification(
        model=body["model"],
        version=body["version"],
        predictions=_predictions(row),
        warnings=tuple(row.get("warnings", ())),
        timing_ms=body["timing_ms"],
        request_id=body.get("request_id", ""),
    )


def explanation(body: Mapping[str, Any]) -> Explanation:
    """From the JSON of `/v1/models/{model}/explain`."""
    explained = body["class"]
    return Explanation(
        model=body["model"],
        version=body["version"],
        explained=_prediction(explained),
        map=tuple(tuple(row) for row in body["map"]),
        logit=explained["logit"],
        bias=explained["bias"],
        crop=Crop(**body["upright"]["crop"]),
        predictions=_predictions(body),
        gates={gates["block"]: tuple(gates["values"]) for gates in body.get("gates", ())},
        request_id=body["request_id"],
    )


def model(contract: Mapping[str, Any]) -> Model:
    """From one contract."""
    return Model(
        name=contract["name"],
        version=contract["version"],
        architecture=contract["architecture"],
        attention=contract["attention"],
        labels=tuple(contract["labels"]),
        contract=contract,
    )


def _predictions(row: Mapping[str, Any]) -> tuple[Prediction, ...]:
    return tuple(map(_prediction, row["predictions"]))


def _prediction(one: Mapping[str, Any]) -> Prediction:
    return Prediction(one["index"], one["label"], one["score"])
