"""What can go wrong between a caller and the service, and what is worth another try."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from eca_service.errors import CODES

OWN = {
    "unreadable": "the file cannot be read",
    "unreachable": "no service answers at that address",
    "not_the_service": "what answers is not this service",
    "unsupported": "this address or protocol does not offer this call",
    "untrusted": "the service's certificate is not trusted",
}
OF_IMAGE = {"unsupported_image_format", "image_undecodable", "image_truncated", "image_too_many_pixels"}
NO_ROUTE = {"404", "405"}  # the address has something behind the service's own, or the service is of another version
FATAL = {*OWN, *NO_ROUTE, "unauthorized", "model_not_found", "version_not_found", "bad_parameter"} - {"unreadable"}


class ClientError(Exception):
    """A call without an answer: `code` is one of the service's, or of OWN; `detail` is a sentence.

    `retry_after_s` is the service's own advice, None where it gave none.
    """

    def __init__(
        self, code: str, detail: str, *, retry_after_s: float | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(code, detail)  # of which another process makes it anew
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def fatal(self) -> bool:
        """Whether every other call would fail likewise, whatever its image: nobody is there, or does not let in."""
        return self.code in FATAL

    @property
    def of_image(self) -> bool:
        """Whether it is the image's own: another one in the same request would have its answer."""
        return self.code in OF_IMAGE

    @property
    def of_many(self) -> bool:
        """Whether fewer images in one request may be taken: these are too many, or too many bytes."""
        return self.code in {"bad_request", "body_too_large"}

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed in a moment."""
        kind = CODES.get(self.code)
        return self.code == "unreachable" or (kind is not None and kind.retry_after_s is not None)


@contextmanager
def understood(url: str) -> Iterator[None]:
    """What reading an answer stumbles over, as ClientError: something else gave it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error):
        raise ClientError("not_the_service", f"what answers at {url} is not this service") from None


@dataclass(frozen=True)
class Retry:
    """At most `attempts` calls in all; between two of them what the service asks for, at least `first_s`, doubling.

    Where nobody has answered yet, as at a wrong address, it is tried `unreachable` times. A quarter more or less, at
    random, keeps callers who were refused together from coming back together.
    """

    attempts: int = 5
    first_s: float = 0.1
    unreachable: int = 4

    def pause_s(self, error: ClientError, attempt: int, left_s: float, known: bool = False) -> float | None:
        """How long to wait after the `attempt`th call (from 1) failed; None: do not try again.

        `left_s` is the time until the caller's deadline: what would come later is not tried. `known` is a service that
        has answered before: it may be starting again.
        """
        wrong = error.code == "unreachable" and not known
        most = min(self.attempts, self.unreachable) if wrong else self.attempts
        if attempt >= most or not error.passing:
            return None
        pause_s = max(error.retry_after_s or 0.0, self.first_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        return pause_s if pause_s < left_s else None
