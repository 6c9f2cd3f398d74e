"""What can be wrong with a certificate and its key, each told in a sentence; and their replacement."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from eca_service import doctor, metrics, tls
from eca_service.diagnosis import Finding
from eca_service.settings import Settings, SettingsError, load
from eca_service.tls import Certificate
from trustme import KeyType

CA = trustme.CA()


def write(folder: Path, name: str = "localhost", kind: KeyType = KeyType.ECDSA, **valid: Any) -> tuple[Path, Path]:
    """A chain and its key, of the one authority."""
    issued = CA.issue_cert(name, key_type=kind, **valid)
    chain, key = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return chain, key


def encrypt(key: Path) -> None:
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(secret.private_bytes(pem, form, serialization.BestAvailableEncryption(b"x")))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda chain, key: chain.unlink(), "ECA_TLS_CERT=.*cert.pem cannot be read: No such file"),
        (
            lambda chain, key: os.mkfifo(key.rename(key.with_name("old")).with_name("key.pem")),
            "ECA_TLS_KEY=.*key.pem is no regular file",
        ),
        (lambda chain, key: key.unlink(), "ECA_TLS_KEY=.*key.pem cannot be read: No such file"),
        (lambda chain, key: chain.write_text("hello"), "ECA_TLS_CERT=.*holds no certificate"),
        (lambda chain, key: chain.write_bytes(key.read_bytes()), "ECA_TLS_CERT=.*holds no certificate"),
        (lambda chain, key: key.write_text("hello"), "ECA_TLS_KEY=.*holds no private key"),
        (lambda chain, key: key.write_bytes(chain.read_bytes()), "ECA_TLS_KEY=.*holds no private key"),
        (lambda chain, key: CA.issue_cert("b").private_key_pem.write_to_path(str(key)), "is not the key of"),
        (lambda chain, key: encrypt(key), "is encrypted"),
        (lambda chain, key: chain.write_bytes(chain.read_bytes()[:200]), "cannot be used: one of them is damaged"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, damage: Callable[[Path, Path], object], sentence: str) -> None:
    chain, key = write(tmp_path)
    Certificate(chain, key)
    damage(chain, key)
    with pytest.raises(SettingsError, match=sentence):
        Certificate(chain, key)


def test_one_that_callers_refuse_is_told(tmp_path: Path) -> None:
    assert Certificate(*write(tmp_path)).refusal() is None
    for year, said in ((2001, "certificate has expired"), (2101, "certificate is not yet valid")):
        chain, key = write(tmp_path, not_before=datetime(year, 1, 1), not_after=datetime(year + 1, 1, 1))
        assert Certificate(chain, key).refusal() == said
        told = list(doctor.files(Settings(tls_cert=chain, tls_key=key)))
        assert told == [Finding(f"Callers refuse ECA_TLS_CERT={chain}: {said}", wrong=True)]


def test_when_it_expires_is_known_of_an_expired_one_too(tmp_path: Path) -> None:
    chain, key = write(tmp_path, not_before=datetime(2001, 1, 1), not_after=datetime(2002, 1, 1))
    chain.write_text(f"Sübject: of the file's maker, not PEM\n{chain.read_text()}")
    assert Certificate(chain, key).expires() == datetime(2002, 1, 1, tzinfo=timezone.utc).timestamp()


async def told(caplog: pytest.LogCaptureFixture, said: str, times: int = 1) -> None:
    """Returns once the log says so."""
    end = time.monotonic() + 30
    while caplog.text.count(said) != times:
        assert time.monotonic() < end, caplog.text
        await asyncio.sleep(0.01)


async def test_of_one_that_is_no_server_s_it_is_not_known_when_it_expires(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers refuse it for something else, now and later."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2001, 1, 1), datetime(2999, 1, 1))
    of_a_caller = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    signed = made.add_extension(of_a_caller, critical=True).sign(key, hashes.SHA256())
    pem, form, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    certificate = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert certificate.refusal() == "unsuitable certificate purpose"
    assert (certificate.expires(), certificate.expires_soon()) == (None, None)
    follow = asyncio.create_task(certificate.follow())
    await told(caplog, f"callers refuse ECA_TLS_CERT={certificate.chain}: unsuitable certificate purpose")
    follow.cancel()


async def test_what_is_spoilt_again_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.02)
    caplog.set_level(logging.INFO)
    chain, key = write(tmp_path)
    follow = asyncio.create_task(Certificate(chain, key).follow())
    for times in (1, 2):
        key.rename(tmp_path / "away")
        await told(caplog, "the previous certificate is kept", times)
        (tmp_path / "away").rename(key)
        chain.write_text(f"{chain.read_text()}\n")
        await told(caplog, f"{chain} was read again", times)
    assert "expires on" not in caplog.text
    assert "renewed files" not in caplog.text
    follow.cancel()


def test_doctor_tells_of_one_that_expires_soon(tmp_path: Path) -> None:
    for days, told in ((6, True), (8, False)):
        end = datetime.now(timezone.utc) + timedelta(days)
        chain, key = write(tmp_path, not_after=end)
        said = [Finding(f"ECA_TLS_CERT={chain} expires on {end:%Y-%m-%d at %H:%M} UTC.")] if told else []
        assert list(doctor.files(Settings(tls_cert=chain, tls_key=key))) == said


async def test_one_that_expires_is_told_before_and_each_day_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def shown() -> float:
        found = metrics.parse(metrics.exposition().decode())
        return next(one.value for one in found if one.name == "eca_tls_certificate_expiry_timestamp_seconds")

    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(tls, "DAY_S", 0.5)
    end = int(time.time()) + 3
    chain, key = write(tmp_path, not_after=datetime.fromtimestamp(end, timezone.utc))
    follow = asyncio.create_task(Certificate(chain, key).follow())
    try:
        await asyncio.sleep(0.5)
        assert shown() == end
        assert caplog.text.count(f"ECA_TLS_CERT={chain} expires on ") == 1
        await asyncio.sleep(end - time.time() + 2.2)
        assert caplog.text.count(f"ECA_TLS_CERT={chain} expires on ") == 1
        assert 2 <= caplog.text.count(f"callers refuse ECA_TLS_CERT={chain}: certificate has expired") <= 5
        caplog.clear()
        write(tmp_path, not_after=datetime(2999, 1, 1))
        await asyncio.sleep(1)
        assert shown() == datetime(2999, 1, 1, tzinfo=timezone.utc).timestamp()
        assert caplog.text.count("callers refuse") <= 1
    finally:
        follow.cancel()


def test_one_without_the_other() -> None:
    with pytest.raises(SettingsError, match="ECA_TLS_CERT and ECA_TLS_KEY go together"):
        load({"tls_cert": "cert.pem"})


async def names_shown(port: int) -> set[str]:
    """The names in the certificate that a server shows, which must be the authority's."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return {value for _, value in found["subjectAltName"]}


async def test_a_renewed_certificate_is_shown_and_a_spoilt_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.02)
    chain, key = write(tmp_path, "old.example")
    certificate = Certificate(chain, key)
    http = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context)
    server = grpc.aio.server()
    ports = [http.sockets[0].getsockname()[1], server.add_secure_port("127.0.0.1:0", certificate.credentials())]
    await server.start()
    key.write_text("half of it")
    follow = asyncio.create_task(certificate.follow())
    try:
        await asyncio.sleep(0.2)
        assert [await names_shown(port) for port in ports] == [{"old.example"}] * 2
        assert caplog.text.count("the previous certificate is kept") == 1
        key.unlink()
        await asyncio.sleep(0.2)
        assert caplog.text.count("the previous certificate is kept") == 2
        with monkeypatch.context() as moment:  # it was there when it was looked for, and is not when it is loaded
            moment.setattr(certificate, "_contents", lambda: (b"", b""))
            await asyncio.sleep(0.2)
        for kind in (KeyType.RSA, KeyType.ECDSA, KeyType.RSA):  # nor is one of another kind of key left beside it
            name = f"new-{kind.name.lower()}.example"
            write(tmp_path, name, kind)
            await asyncio.sleep(0.2)
            assert [await names_shown(port) for port in ports] == [{name}] * 2
        assert "callers refuse" not in caplog.text
        write(tmp_path, not_before=datetime(2001, 1, 1), not_after=datetime(2002, 1, 1))
        await asyncio.sleep(0.2)
        assert f"callers refuse ECA_TLS_CERT={chain}: certificate has expired" in caplog.text
    finally:
        follow.cancel()
        http.close()
        await server.stop(None)


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    context = Certificate(*write(tmp_path)).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
