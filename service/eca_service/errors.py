"""The one table of errors: code to HTTP status, gRPC status and retry advice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How an error code is answered; `retry_after_s` is sent where waiting helps."""

    http: int
    grpc: str
    title: str
    retry_after_s: int | None = None


CODES: dict[str, Kind] = {
    "bad_request": Kind(400, "INVALID_ARGUMENT", "The request cannot be understood"),
    "bad_parameter": Kind(400, "INVALID_ARGUMENT", "A parameter is out of its range"),
    "unauthorized": Kind(401, "UNAUTHENTICATED", "A valid key is needed"),
    "model_not_found": Kind(404, "NOT_FOUND", "No such model"),
    "version_not_found": Kind(404, "NOT_FOUND", "No such version of the model"),
    "body_too_large": Kind(413, "RESOURCE_EXHAUSTED", "The body is too large"),
    "image_too_many_pixels": Kind(413, "RESOURCE_EXHAUSTED", "The image has too many pixels"),
    "unsupported_image_format": Kind(415, "INVALID_ARGUMENT", "The image's format is not supported"),
    "image_undecodable": Kind(422, "INVALID_ARGUMENT", "The image cannot be decoded"),
    "image_truncated": Kind(422, "INVALID_ARGUMENT", "The image is cut off"),
    "rate_limited": Kind(429, "RESOURCE_EXHAUSTED", "Too many requests with this key", 1),
    "overloaded": Kind(429, "RESOURCE_EXHAUSTED", "The service is at its capacity", 1),
    "client_closed": Kind(499, "CANCELLED", "The client went away"),
    "internal": Kind(500, "INTERNAL", "The service failed"),
    "model_not_ready": Kind(503, "UNAVAILABLE", "The model is not ready", 1),
    "backend_unavailable": Kind(503, "UNAVAILABLE", "The inference server is not reachable", 1),
    "draining": Kind(503, "UNAVAILABLE", "The service is shutting down", 1),
    "deadline_exceeded": Kind(504, "DEADLINE_EXCEEDED", "The deadline passed"),
}


class ServiceError(Exception):
    """A handled failure: a code of CODES and one sentence for the caller."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def kind(self) -> Kind:
        """The table's row."""
        return CODES[self.code]


def problem(error: ServiceError, request_id: str) -> dict[str, object]:
    """The RFC 9457 body of an error."""
    return {
        "type": f"urn:eca-serve:error:{error.code}",
        "title": error.kind.title,
        "status": error.kind.http,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
