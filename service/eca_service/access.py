"""Who may call: which routes ask for a key, whose key it is, and how much its owner may send."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

from eca_service.errors import ServiceError
from eca_service.keys import Keys, Token
from eca_service.rates import Rates
from eca_service.settings import Settings

HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
PIN = re.compile(r"/v1/models/[^/]+/pin")
OPEN_CALLS = {"inference.GRPCInferenceService/ServerLive", "inference.GRPCInferenceService/ServerReady"}
HEALTH_SERVICE = "grpc.health.v1.Health/"
REFLECTION = "grpc.reflection."
RATES = "rates"  # the file that several workers count in
BEARER = re.compile(rb"(?i:bearer) +(\S+) *")


class Access:
    """The rules of a service, from its settings: where there are keys all routes ask for one but those that are opened.

    `folder` is what several workers have in common. Raises SettingsError where a file of keys cannot be read.
    """

    def __init__(self, settings: Settings, folder: Path | None = None) -> None:
        self._keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        self._rates: Rates | None = None
        if settings.rate_limit:
            self._rates = Rates(settings.rate_limit, settings.rate_burst, folder / RATES if folder else None)
        self._by_address = settings.rate_by == "address"
        self.management = (
            Token(settings.management_token_file, "ECA_MANAGEMENT_TOKEN_FILE")
            if settings.management_token_file
            else None
        )
        self._open = HEALTH
        self._open_reflection = settings.docs == "on"

    @property
    def keyed(self) -> bool:
        """Whether keys are asked for at all."""
        return self._keys is not None

    def open(self, paths: Iterable[str]) -> None:
        """These routes ask for no key."""
        self._open |= frozenset(paths)

    def is_open(self, path: str) -> bool:
        """Whether an HTTP route asks for no key: health, what was opened, and what has a token of its own."""
        return path in self._open or (self.management is not None and PIN.fullmatch(path) is not None)

    def is_open_call(self, method: str) -> bool:
        """The same of a gRPC method, such as `inference.GRPCInferenceService/ModelInfer`."""
        if method.startswith(REFLECTION):
            return self._open_reflection
        return method in OPEN_CALLS or method.startswith(HEALTH_SERVICE)

    def caller(self, authorization: bytes | None, api_key: bytes | None) -> str:
        """The name of the key in these headers; empty where no keys are asked for. Raises unauthorized."""
        if self._keys is None:
            return ""
        secret = bearer(authorization) or api_key
        if not secret:
            raise ServiceError("unauthorized", "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        name = self._keys.owner(secret)
        if name is None:
            raise ServiceError("unauthorized", "the key is not known here")
        return name

    def admit(self, caller: str, address: str) -> str:
        """The account that a request of `caller` from `address` counts for. Raises rate_limited."""
        if self._rates is None:
            return ""
        account = _network(address) if self._by_address else caller
        self._rates.require(account)
        return account

    def charge(self, account: str, images: int) -> None:
        """Counts further images of a request that was admitted."""
        if self._rates is not None:
            self._rates.charge(account, images)

    def require_management(self, authorization: bytes | None) -> None:
        """Raises unauthorized where this is not the management token."""
        if self.management is None or not self.management.matches(bearer(authorization) or b""):
            raise ServiceError("unauthorized", "the management token is needed: Authorization: Bearer TOKEN")


def bearer(authorization: bytes | None) -> bytes | None:
    """The token of an Authorization header (RFC 6750), None where it holds none."""
    found = BEARER.fullmatch(authorization or b"")
    return found[1] if found else None


def _network(address: str) -> str:
    """Whom an address stands for: of IPv6 the /64 that one subscriber has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
