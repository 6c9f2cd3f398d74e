"""The certificate of both ports: checked at start, read again when its files are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
from pathlib import Path
from typing import Any

import grpc

from eca_service import metrics
from eca_service.settings import SettingsError, require_file

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0
DAY_S = 86400.0
SOON_S = 7 * DAY_S
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h


class Certificate:
    """A certificate chain and its private key, both PEM. Raises SettingsError where they cannot be used."""

    def __init__(self, chain: Path, key: Path) -> None:
        self.chain = chain
        self.key = key
        self._read = self._contents()
        self.context = self._newest = _context(chain, key)
        self.context.sni_callback = self._show
        self._warn_at = 0.0

    def credentials(self) -> grpc.ServerCredentials:
        """The same for gRPC, which asks again for every connection."""
        shown = self._read

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            if self._read == shown:
                return None
            shown = self._read
            return _configuration(shown)

        return grpc.dynamic_ssl_server_credentials(_configuration(shown), fetch)

    def refusal(self) -> str | None:
        """What one who trusts this very certificate has against it, such as that it has expired; None where nothing."""
        try:
            self._seen()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except ssl.SSLError:
            pass  # it says nothing of the certificate
        return None

    def expires(self) -> float | None:
        """When it does, as Unix time; None where callers have something else against it."""
        try:
            return float(ssl.cert_time_to_seconds(self._seen(NO_CHECK_TIME)["notAfter"]))
        except ssl.SSLError:
            return None

    def expires_soon(self) -> str | None:
        """A sentence where that is within a week."""
        end = self.expires()
        if end is None or end - time.time() > SOON_S:
            return None
        return f"ECA_TLS_CERT={self.chain} expires on {time.strftime('%Y-%m-%d at %H:%M UTC', time.gmtime(end))}"

    def _seen(self, flags: ssl.VerifyFlags = ssl.VerifyFlags.VERIFY_DEFAULT) -> dict[str, Any]:
        """The certificate, decoded, for one who trusts it, by a handshake in memory. Raises ssl.SSLError."""
        caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        caller.check_hostname = False
        caller.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | flags
        caller.load_verify_locations(cadata=self._read[0].decode("ascii", "ignore"))  # between its certificates is text
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking, showing = caller.wrap_bio(back, there), self._newest.wrap_bio(there, back, server_side=True)
        for end in (asking, showing, asking, showing, asking):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return asking.getpeercert() or {}

    async def follow(self) -> None:
        """Takes over a replaced pair for new connections, as renewal writes it; runs until cancelled."""
        self._measure()
        told = ""
        while True:
            self._warn()
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = self._contents()
                if found != self._read:
                    self._newest, self._read = _context(self.chain, self.key), found
                    logger.info("%s was read again", self.chain)
                    self._measure()
                told = ""
            except (SettingsError, OSError) as error:  # half of the pair may be written yet, or gone between two looks
                if told != str(error):
                    logger.warning("the previous certificate is kept: %s", error)
                told = str(error)

    def _measure(self) -> None:
        if end := self.expires():
            metrics.certificate_expiry().set(end)
        self._warn_at = 0.0

    def _warn(self) -> None:
        """Once where it expires soon, and once a day where callers refuse it."""
        if (now := time.time()) < self._warn_at:
            return
        end = self.expires() or math.inf
        if reason := self.refusal():
            logger.warning("callers refuse ECA_TLS_CERT=%s: %s", self.chain, reason)
            self._warn_at = now + DAY_S
        elif soon := self.expires_soon():
            logger.warning("%s; renewed files are used without a restart", soon)
            self._warn_at = end + 1  # OpenSSL counts whole seconds, by a clock a little behind
        else:
            self._warn_at = end - SOON_S

    def _show(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake. A context keeps one pair for each kind of key: so a new pair has its own."""
        connection.context = self._newest

    def _contents(self) -> tuple[bytes, bytes]:
        return _bytes(self.chain, "ECA_TLS_CERT"), _bytes(self.key, "ECA_TLS_KEY")


def _configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    chain, key = pair
    return grpc.ssl_server_certificate_configuration([(key, chain)])


def _bytes(file: Path, variable: str) -> bytes:
    require_file(file, variable)
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}={file} cannot be read: {error.strerror}") from None


def _context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and newer
    _load(context, chain, key)
    return context


def _load(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    def no_password() -> str:
        raise SettingsError(f"ECA_TLS_KEY={key} is encrypted; write it without a password: openssl pkey -in {key}")

    try:
        context.load_cert_chain(chain, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"ECA_TLS_KEY={key} is not the key of ECA_TLS_CERT={chain}") from None
        if b"-----BEGIN CERTIFICATE-----" not in chain.read_bytes():
            raise SettingsError(f"ECA_TLS_CERT={chain} holds no certificate in PEM") from None
        if b"PRIVATE KEY-----" not in key.read_bytes():
            raise SettingsError(f"ECA_TLS_KEY={key} holds no private key in PEM") from None
        reason = error.reason or "one of them is damaged"
        raise SettingsError(f"ECA_TLS_CERT={chain} and ECA_TLS_KEY={key} cannot be used: {reason}") from None
