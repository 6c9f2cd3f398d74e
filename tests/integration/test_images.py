"""Images as callers send them, whole, misnamed and mutated, through the whole service."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from eca_service.errors import CODES
from PIL import Image

from tests.fuzz.mutations import mutated, whole_images
from tests.integration.callers import PROTOCOLS, call
from tests.integration.conftest import FRESH, MODEL, Service

BATCH = 16
CALLERS_OWN = {code for code, kind in CODES.items() if kind.http < 429} | {"ok"}


def test_wrong_name(service: Service) -> None:
    """Neither the name nor the type decides what an image is."""
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "JPEG")
    url = f"{service.url}/v1/models/{MODEL}/classify"
    plain = FRESH.post(url, content=out.getvalue()).raise_for_status().json()["results"][0]
    for name, kind in (("cat.png", "image/png"), ("cat.exe", "application/x-msdownload"), ("cat.svg", "image/svg+xml")):
        sent = {"file": (name, out.getvalue(), kind)}
        assert FRESH.post(url, files=sent).raise_for_status().json()["results"][0] == plain
        headers = {"content-type": kind}
        assert FRESH.post(url, content=out.getvalue(), headers=headers).raise_for_status().json()["results"][0] == plain
    text = FRESH.post(url, files={"file": ("cat.jpg", b"hello", "image/jpeg")})
    assert (text.status_code, text.json()["code"]) == (415, "unsupported_image_format")


def resident_bytes(pid: int) -> int:
    """The memory of a process that is really there."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("count", [320, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_mutated_images(service: Service, count: int) -> None:
    """Whatever is sent, the caller is told what is wrong with it; the service stays as it was."""
    whole = list(whole_images())
    for protocol in PROTOCOLS:
        reply = call(protocol, service, MODEL, whole)
        assert reply.code == "ok"
        assert not any(isinstance(row, str) for row in reply.rows)
    seen: set[str] = set()
    stream = mutated(seed=7)
    before = 0
    for number, protocol in enumerate(itertools.islice(itertools.cycle(PROTOCOLS), count // BATCH)):
        reply = call(protocol, service, MODEL, list(itertools.islice(stream, BATCH)))
        seen |= {reply.code} | {row for row in reply.rows if isinstance(row, str)}
        if number == count // BATCH // 4:
            before = resident_bytes(service.process.pid)
    assert seen <= CALLERS_OWN, seen
    assert seen >= {"ok", "image_undecodable", "image_truncated", "unsupported_image_format"}
    assert service.process.poll() is None
    assert resident_bytes(service.process.pid) - before < 64 << 20
    assert FRESH.get(service.url + "/readyz").status_code == 200
    answered = FRESH.get(service.url + "/metrics").text
    assert 'code="internal"' not in answered
