"""The one table of errors: code to HTTP status, gRPC status and advice."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Kind:
    """How an error code is answered, and what its caller can do; `retry_after_s` is sent where waiting helps."""

    http: int
    grpc: str
    title: str
    advice: str
    retry_after_s: int | None = None


CODES: dict[str, Kind] = {
    "bad_request": Kind(
        400,
        "INVALID_ARGUMENT",
        "The request cannot be understood",
        "Compare the request with the examples in /docs.",
    ),
    "bad_parameter": Kind(
        400,
        "INVALID_ARGUMENT",
        "A parameter is out of its range",
        "Give the parameter a valid value; `detail` says which.",
    ),
    "unauthorized": Kind(
        401,
        "UNAUTHENTICATED",
        "A valid key is needed",
        "Send a key as `Authorization: Bearer KEY`; the service's operator hands them out.",
    ),
    "model_not_found": Kind(
        404,
        "NOT_FOUND",
        "No such model",
        "Ask GET /v1/models for the names that are served.",
    ),
    "version_not_found": Kind(
        404,
        "NOT_FOUND",
        "No such version of the model",
        "Leave the version out to get the one that is served.",
    ),
    "body_too_large": Kind(
        413,
        "RESOURCE_EXHAUSTED",
        "The body is too large",
        "Send fewer images at once, or smaller files.",
    ),
    "image_too_many_pixels": Kind(
        413,
        "RESOURCE_EXHAUSTED",
        "The image has too many pixels",
        "Make the image smaller; the network sees a few hundred pixels of it anyway.",
    ),
    "unsupported_image_format": Kind(
        415,
        "INVALID_ARGUMENT",
        "The image's format is not supported",
        "Convert the image to one of the supported formats, such as JPEG or PNG.",
    ),
    "image_undecodable": Kind(
        422,
        "INVALID_ARGUMENT",
        "The image cannot be decoded",
        "Open the image in an image program and save it again.",
    ),
    "image_truncated": Kind(
        422,
        "INVALID_ARGUMENT",
        "The image is cut off",
        "Send the whole file; it may have been cut off during upload.",
    ),
    "rate_limited": Kind(
        429,
        "RESOURCE_EXHAUSTED",
        "Too many images from this caller",
        "Wait as long as Retry-After says, then send again, more slowly.",
        1,
    ),
    "overloaded": Kind(
        429,
        "RESOURCE_EXHAUSTED",
        "The service is at its capacity",
        "Wait as long as Retry-After says, then send again.",
        1,
    ),
    "client_closed": Kind(
        499,
        "CANCELLED",
        "The client went away",
        "Nothing: the caller left before it was answered.",
    ),
    "internal": Kind(
        500,
        "INTERNAL",
        "The service failed",
        "Send again; if the error persists, give the request's id to the service's operator.",
    ),
    "model_not_ready": Kind(
        503,
        "UNAVAILABLE",
        "The model is not ready",
        "Wait a moment; if the error persists, `eca-serve doctor` says what is wrong.",
        1,
    ),
    "backend_unavailable": Kind(
        503,
        "UNAVAILABLE",
        "The inference server is not reachable",
        "Wait a moment; if the error persists, `eca-serve doctor` says what is wrong.",
        1,
    ),
    "draining": Kind(
        503,
        "UNAVAILABLE",
        "The service is shutting down",
        "Send again; another instance, or this one once it has restarted, will answer.",
        1,
    ),
    "deadline_exceeded": Kind(
        504,
        "DEADLINE_EXCEEDED",
        "The deadline passed",
        "Allow more time with X-Request-Timeout-Ms, or send a smaller image.",
    ),
}


class ServiceError(Exception):
    """A handled failure: a code of CODES and one sentence for the caller.

    `retry_after_s`, whole seconds, is what the table says, unless the failure knows better. What callers wrote and the
    sentence repeats may be no text that can be encoded, and may be long: gRPC has room for 8 KiB, in which other
    characters than ASCII's take up to twelve bytes.
    """

    def __init__(self, code: str, detail: str, retry_after_s: int | None = None) -> None:
        detail = _clipped(detail.encode(errors="replace").decode())
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after_s = self.kind.retry_after_s if retry_after_s is None else retry_after_s

    @property
    def kind(self) -> Kind:
        """The table's row."""
        return CODES[self.code]

    def anew(self) -> ServiceError:
        """The same, for whoever holds it and raises it: itself it would keep its holder, and the request's images."""
        return ServiceError(self.code, self.detail, self.retry_after_s)


def _clipped(text: str) -> str:
    most = 2000 if text.isascii() else 500
    return text if len(text) <= most else text[:most] + "..."


def problem(error: ServiceError, request_id: str) -> dict[str, object]:
    """The RFC 9457 body of an error."""
    return {
        "type": f"urn:eca-serve:error:{error.code}",
        "title": error.kind.title,
        "status": error.kind.http,
        "detail": error.detail,
        "advice": error.kind.advice,
        "code": error.code,
        "request_id": request_id,
    }


def refusal(status: int, detail: str, request_id: str) -> dict[str, object]:
    """The same of what HTTP refuses by a status that the table does not have: its `code` is the status's number."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": str(status),
        "request_id": request_id,
    }
