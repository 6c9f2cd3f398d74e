"""The certificate of both ports: checked at start, read again when its files are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path

import grpc

from eca_service.settings import SettingsError

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0


class Certificate:
    """A certificate chain and its private key, both PEM. Raises SettingsError where they cannot be used."""

    def __init__(self, chain: Path, key: Path) -> None:
        self.chain = chain
        self.key = key
        self._read = self._contents()
        self.context = self._newest = _context(chain, key)
        self.context.sni_callback = self._show

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
        """What one who trusts this very certificate has against it, such as that it has expired; None where nothing.

        Asked by a handshake in memory.
        """
        caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        caller.check_hostname = False
        caller.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            caller.load_verify_locations(self.chain)
            ends = caller.wrap_bio(back, there), self._newest.wrap_bio(there, back, server_side=True)
            for end in (*ends, ends[0]):  # hello, the certificate, what is said of it
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except OSError:
            pass  # it is being replaced
        return None

    async def follow(self) -> None:
        """Takes over a replaced pair for new connections, as renewal writes it; runs until cancelled."""
        self._warn()
        told = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = self._contents()
                if found != self._read:
                    self._newest, self._read = _context(self.chain, self.key), found
                    logger.info("%s was read again", self.chain)
                    self._warn()
                told = ""
            except (SettingsError, OSError) as error:  # half of the pair may be written yet, or gone between two looks
                if told != str(error):
                    logger.warning("the certificate of before is kept: %s", error)
                told = str(error)

    def _warn(self) -> None:
        if reason := self.refusal():
            logger.warning("callers refuse ECA_TLS_CERT=%s: %s", self.chain, reason)

    def _show(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake. A context keeps one pair for each kind of key: so a new pair has its own."""
        connection.context = self._newest

    def _contents(self) -> tuple[bytes, bytes]:
        return _bytes(self.chain, "ECA_TLS_CERT"), _bytes(self.key, "ECA_TLS_KEY")


def _configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    chain, key = pair
    return grpc.ssl_server_certificate_configuration([(key, chain)])


def _bytes(file: Path, variable: str) -> bytes:
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
