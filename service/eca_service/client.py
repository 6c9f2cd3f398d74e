"""A client of the gateway's HTTP interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Failure:
    """An image that was not classified: the service's error code, or `unreadable` or `unreachable`."""

    code: str
    detail: str


def classify_file(url: str, path: Path, model: str | None = None, top_k: int = 5) -> dict[str, Any] | Failure:
    """The service's answer for one file, as in its documentation, or why there is none."""
    route = f"/v1/models/{model}/classify" if model else "/v1/classify"
    try:
        data = path.read_bytes()
    except OSError as error:
        return Failure("unreadable", f"{error.strerror}")
    try:
        response = httpx.post(url + route, params={"top_k": top_k}, content=data, timeout=60)
        body: dict[str, Any] = response.json()
    except httpx.HTTPError as error:
        return Failure("unreachable", f"no service answers at {url} ({error}); `eca-serve up` starts one")
    except ValueError:
        return Failure("unreachable", f"what answers at {url} is not this service")
    if response.is_success:
        return body
    return Failure(str(body.get("code", response.status_code)), str(body.get("detail", "no reason given")))


class Unreachable(Exception):
    """No answer of this service's came; the message is a sentence."""


def fetch(url: str, route: str) -> httpx.Response:
    """The successful answer to a GET. Raises Unreachable."""
    try:
        response = httpx.get(url + route, timeout=10)
    except httpx.HTTPError as error:
        raise Unreachable(f"no service answers at {url} ({error}); `eca-serve up` starts one") from None
    if not response.is_success:
        raise Unreachable(f"{url}{route} answers {response.status_code}")
    return response


def ready(url: str) -> str | None:
    """None where the service at `url` is ready, else a sentence that says why it is not."""
    try:
        response = httpx.get(url + "/readyz", timeout=10)
        body = response.json()
    except httpx.HTTPError:
        return f"no service answers at {url}; `eca-serve up` starts one"
    except ValueError:
        return f"what answers at {url} is not this service"
    if response.is_success:
        return None
    reasons = "; ".join(f"{name}: {reason}" for name, reason in body.get("reasons", {}).items())
    return f"the service at {url} is not ready: {reasons}"
