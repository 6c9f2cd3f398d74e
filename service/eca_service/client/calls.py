"""What can be asked of the service, whatever protocol carries it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import unquote

from eca_service.client import answers
from eca_service.client.answers import Classification, Explanation, Model, Overlay, Prediction
from eca_service.client.failures import ClientError
from eca_service.client.files import as_names

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8080"
LONGEST_S = 86_400.0  # a day is as good as for ever, and no protocol takes any number
Image = bytes | str | os.PathLike[str]  # encoded bytes, or the path of a file that holds them
Route = Literal["classify", "explain", "overlay", "compare", "metrics", "models", "ready", "pin", "unpin"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request; `read` makes the answer's value from its body: JSON, or (bytes, headers) for an overlay.

    What is not `idempotent` must not be made again where it may have been done. Raises ClientError for what no service
    can be asked: a model of an impossible name, `model_not_found`; a version of no model, a value that is no text,
    `bad_parameter`.
    """

    route: Route
    read: Callable[[Any], T]
    images: tuple[bytes, ...] = ()
    model: str | None = None
    version: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True

    def __post_init__(self) -> None:
        for name, value in self.parameters.items():
            if not _is_text(value):
                raise ClientError("bad_parameter", f"{name} {value!r} cannot be sent: it is not UTF-8")
        if self.model is not None:
            _require_name(self.model)
        elif self.version is not None:
            raise ClientError("bad_parameter", f"version {self.version} needs a model; name the model too")


def due(timeout_s: float) -> float:
    """When a call that may take so long must be done, by the monotonic clock; in a day at most."""
    return time.monotonic() + min(LONGEST_S, timeout_s)


def left_s(due: float) -> float:
    """The time until then, 0 afterwards."""
    return max(0.0, due - time.monotonic())


def content(image: Image) -> bytes:
    """The image's bytes. Raises ClientError, code `unreadable`, where the file cannot be read."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ClientError("unreadable", f"{error.strerror or error}") from None
    except ValueError as error:  # a path that no file can have
        raise ClientError("unreadable", str(error)) from None


def contents(images: Sequence[Image]) -> tuple[list[bytes], dict[int, ClientError]]:
    """The bytes of those images that can be read, and by place the errors of the others."""
    found, unread = [], {}
    for place, image in enumerate(images):
        try:
            found.append(content(image))
        except ClientError as error:
            unread[place] = error.with_traceback(None)  # by its frames it would hold the other images
    return found, unread


def of_each(error: ClientError, images: int, unread: Mapping[int, ClientError]) -> list[Classification | ClientError]:
    """A request's error as that of each of its `images`, where others could not be read or it is the only one's own.

    Raises it otherwise.
    """
    if unread or (images == 1 and error.of_image):
        return [error.with_traceback(None)] * images
    raise error


def in_places(found: Sequence[T], unread: Mapping[int, ClientError]) -> list[T | ClientError]:
    """The answers to what was read, and the errors of the rest in their places between."""
    left = iter(found)
    return [unread[place] if place in unread else next(left) for place in range(len(found) + len(unread))]


def only(found: list[Classification | ClientError]) -> Classification:
    """The answer to the one image of a request. Raises its error."""
    if isinstance(found[0], ClientError):
        raise found[0]
    return found[0]


def classify(
    images: Sequence[bytes], model: str | None, version: int | None, top_k: int | None
) -> Call[list[Classification | ClientError]]:
    """For each image its Classification, or the ClientError that it alone met."""

    def read(body: Any) -> list[Classification | ClientError]:
        found: list[Classification | ClientError] = [
            ClientError(row["error"]["code"], row["error"]["detail"], request_id=body.get("request_id"))
            if "error" in row
            else answers.classification(body, row)
            for row in body["results"]
        ]
        return _require(found, len(found) == len(images))

    return Call("classify", read, tuple(images), model, version, _top(top_k))


def explain(image: bytes, model: str, wanted: str | int | None, top_k: int | None, gates: bool) -> Call[Explanation]:
    """The map as numbers."""
    parameters = {**_top(top_k), **_wanted(wanted), **({"gates": "true"} if gates else {})}
    return Call("explain", answers.explanation, (image,), model, None, parameters)


def overlay(image: bytes, model: str, wanted: str | int | None, opacity: float, side: int) -> Call[Overlay]:
    """The map as a picture."""

    def read(body: tuple[bytes, Mapping[str, str]]) -> Overlay:
        png, told = body
        explained = Prediction(int(told["x-class-index"]), unquote(told["x-class-label"]), float(told["x-class-score"]))
        return Overlay(png, explained, int(told["x-model-version"]))

    parameters = {"opacity": str(opacity), "side": str(side), **_wanted(wanted)}
    return Call("overlay", read, (image,), model, None, parameters)


def compare(
    image: bytes, models: str | Sequence[str] | None, top_k: int | None
) -> Call[dict[str, Classification | ClientError]]:
    """Several models' answers by name; one that failed alone has its error there."""
    models = None if models is None else as_names(models)

    def read(body: Any) -> dict[str, Classification | ClientError]:
        shared = {"request_id": body["request_id"]}
        found: dict[str, Classification | ClientError] = {
            row["model"]: ClientError(row["error"]["code"], row["error"]["detail"], request_id=body["request_id"])
            if "error" in row
            else answers.classification(row | shared, row | {"warnings": body["warnings"]})
            for row in body["results"]
        }
        return _require(found, models is None or set(found) == set(models))

    for name in models or ():
        _require_name(name, ",")
    parameters = {**_top(top_k), **({} if models is None else {"models": ",".join(models)})}
    return Call("compare", read, (image,), parameters=parameters)


def models() -> Call[list[Model]]:
    """All models served."""
    return Call("models", lambda body: [answers.model(contract) for contract in body["models"]])


def metrics() -> Call[str]:
    """The service's metrics as OpenMetrics text."""
    return Call("metrics", str)


def default_model() -> Call[str]:
    """The model of calls that name none."""

    def read(body: Any) -> str:
        if body["default"] is None:
            raise ClientError("model_not_found", "the service serves no model")
        return str(body["default"])

    return Call("models", read)


def ready() -> Call[dict[str, str]]:
    """Why the service is not ready, by model; empty where it is."""
    return Call("ready", lambda body: dict(body["reasons"]))


def pin(model: str, version: int | None) -> Call[int | None]:
    """The version that the model is pinned to afterwards; without `version` the one before."""
    parameters = {} if version is None else {"version": str(version)}
    return Call("pin", _pinned, model=model, parameters=parameters, idempotent=version is not None)


def unpin(model: str) -> Call[int | None]:
    """The model follows its newest version again."""
    return Call("unpin", _pinned, model=model)


def _pinned(body: Any) -> int | None:
    version: int | None = body["pinned"]
    return version


def _require_name(name: str, separator: str = "/") -> None:
    """Raises ClientError, `model_not_found`, where an address, or a list with that separator, would name another."""
    if name.strip() != name or name in {"", ".", ".."} or separator in name or not _is_text(name):
        raise ClientError("model_not_found", f"there is no model {name!r}")


def _is_text(value: str) -> bool:
    """Not so where a command line's bytes are no UTF-8: Python has them as halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require(found: T, whole: bool) -> T:
    if not whole:
        raise ValueError("the answer is not to what was asked")
    return found


def _top(top_k: int | None) -> dict[str, str]:
    return {} if top_k is None else {"top_k": str(top_k)}


def _wanted(wanted: str | int | None) -> dict[str, str]:
    return {} if wanted is None else {"class": str(wanted)}
