"""Calls over HTTP."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from eca_service.client.address import is_loopback, shown
from eca_service.client.calls import DEFAULT_URL, Call
from eca_service.client.failures import NO_ROUTE, ClientError, understood
from eca_service.errors import CODES

T = TypeVar("T")
SLACK_S = 1.0  # the service's own `deadline_exceeded` says more than a connection that was given up
CONNECT_S = 5.0
OF_PROXY = {  # what it means where the service itself did not answer
    413: "body_too_large",
    429: "overloaded",
    502: "backend_unavailable",
    503: "backend_unavailable",
    504: "deadline_exceeded",
}
ACCEPTED = {"overlay": "image/png", "metrics": "*/*"}


class Http:
    """A pool of connections for one thread or many."""

    def __init__(self, url: str, key: str | None, ca: Path | None, pinned: bool) -> None:
        self._url = shown(url)
        with _translated(url):
            self._client = httpx.Client(**_options(url, key, ca, pinned))

    def ask(self, call: Call[T], left_s: float) -> T:
        """What the answer says. Raises ClientError."""
        due = time.monotonic() + left_s + SLACK_S
        with _translated(self._url), self._client.stream(**_request(call, left_s)) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > due:  # httpx's own limit is on each part
                    raise httpx.ReadTimeout("its parts come too slowly")
        return _read(self._url, call, response, b"".join(parts))

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class AsyncHttp:
    """The same in an event loop."""

    def __init__(self, url: str, key: str | None, ca: Path | None, pinned: bool) -> None:
        self._url = shown(url)
        with _translated(url):
            self._client = httpx.AsyncClient(**_options(url, key, ca, pinned))

    async def ask(self, call: Call[T], left_s: float) -> T:
        """What the answer says. Raises ClientError."""
        with _translated(self._url):
            asked = self._client.request(**_request(call, left_s))
            response = await asyncio.wait_for(asked, left_s + SLACK_S)  # httpx's own limit is on each part
        return _read(self._url, call, response, response.content)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, asyncio.TimeoutError):
        raise ClientError("deadline_exceeded", f"{url} did not answer in time") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):  # the last: of a host that DNS cannot name
        raise ClientError("unsupported", f"{url} is not an address such as {DEFAULT_URL}") from None
    except (httpx.HTTPError, ssl.SSLError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ClientError("untrusted", f"the certificate of {url} is not trusted ({error}); see --ca") from None
        reason = str(error) or type(error).__name__
        listens = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or "WRONG_VERSION_NUMBER" in reason
        advice = "does it speak http://, https:// or grpc://?" if listens else "`eca-serve up` starts one"
        raise ClientError("unreachable", f"no service answers at {url} ({reason}); {advice}") from None


def _options(url: str, key: str | None, ca: Path | None, pinned: bool) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=256),
        "trust_env": not is_loopback(url),
        "verify": False if url.startswith("http:") else _trusted(ca, pinned),
    }


def _trusted(ca: Path | None, pinned: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ClientError("untrusted", f"{ca} holds no certificate in PEM ({error})") from None
    if pinned:
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _request(call: Call[Any], left_s: float) -> dict[str, Any]:
    of_model = f"/v1/models/{quote(call.model, safe='')}" if call.model else "/v1"
    if call.version is not None:
        of_model += f"/versions/{call.version}"
    routes = {
        "classify": ("POST", f"{of_model}/classify"),
        "explain": ("POST", f"{of_model}/explain"),
        "overlay": ("POST", f"{of_model}/explain"),
        "compare": ("POST", "/v1/compare"),
        "metrics": ("GET", "/metrics"),
        "models": ("GET", "/v1/models"),
        "ready": ("GET", "/readyz"),
        "pin": ("PUT", f"{of_model}/pin"),
        "unpin": ("DELETE", f"{of_model}/pin"),
    }
    method, path = routes[call.route]
    request: dict[str, Any] = {
        "method": method,
        "url": path,
        "headers": {
            "x-request-timeout-ms": f"{max(1.0, 1000 * left_s):.0f}",
            "accept": ACCEPTED.get(call.route, "application/json"),
        },
        "timeout": httpx.Timeout(left_s + SLACK_S, connect=min(CONNECT_S, left_s + SLACK_S)),
    }
    if call.route == "pin":
        request["json"] = {name: int(value) for name, value in call.parameters.items()} or None
    else:
        request["params"] = call.parameters
    if len(call.images) == 1 and call.images[0]:  # a body of no bytes is no image, a part of a form is an empty one
        request["content"] = call.images[0]
    elif call.images:
        request["files"] = [("image", (str(number), image)) for number, image in enumerate(call.images)]
    return request


def _read(url: str, call: Call[T], response: httpx.Response, body: bytes) -> T:
    """The value of an answer with that `body`. Raises ClientError."""
    with understood(url):
        if response.is_success and call.route == "overlay":
            return call.read((body, response.headers))
        if response.is_success and call.route == "metrics":
            return call.read(body.decode())
        if response.is_success:
            return call.read(json.loads(body))
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            told = {}
        if call.route == "ready" and "reasons" in told:
            return call.read(told)
        code, detail = str(told.get("code")), str(told.get("detail", "no reason given"))
        ours = code in CODES or (code == str(response.status_code) and "request_id" in told)  # or no such route
        if ours and code in NO_ROUTE:
            detail = f"at {url} {detail}"
        if not ours:
            code = OF_PROXY[response.status_code]
            detail = f"what stands before the service at {url} answers {response.status_code}"
    after = response.headers.get("retry-after", "")
    raise ClientError(
        code,
        detail,
        retry_after_s=float(after) if after.isdecimal() else None,
        request_id=told.get("request_id"),
    )
