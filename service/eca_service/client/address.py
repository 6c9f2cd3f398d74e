"""Where a service is and what it is shown: its address and the caller's key, as both protocols take them."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from eca_service.client.calls import DEFAULT_URL
from eca_service.client.failures import ClientError

KEY = re.compile(r"[!-~]+")
USER = re.compile(r"^(\w+://)?[^/?#]*@")


def as_address(url: str) -> str:
    """The address without a slash at its end, its scheme in lower case: schemes are compared, and may be given so.

    Raises ClientError, `unsupported`, where its host or port cannot be one: asyncio would raise an ExceptionGroup; and
    where gRPC, which knows no users, would look up the whole as a host.
    """
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ClientError("unsupported", f"{shown(url)} is not an address such as {DEFAULT_URL}") from None
    scheme, separator, rest = url.rstrip("/").partition("://")
    if scheme.lower() in {"grpc", "grpcs"} and shown(url) != url:
        raise ClientError("unsupported", f"{shown(url)} cannot be asked as a user; gRPC takes a key alone")
    return scheme.lower() + separator + rest


def shown(url: str) -> str:
    """The address as errors name it: without the user and password that a proxy before the service may ask for."""
    return USER.sub(r"\1", url)


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own: no proxy can reach it, whatever http_proxy says."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def as_key(key: str | None) -> str | None:
    """The key without the white space around it, as a file holds it; None where there is none.

    Raises ClientError, `unauthorized`, for what no header can carry. It never shows the key.
    """
    stripped = (key or "").strip()
    if stripped and not KEY.fullmatch(stripped):
        raise ClientError(
            "unauthorized", "the key is not a single word of ASCII characters; its file must hold nothing else"
        )
    return stripped or None
