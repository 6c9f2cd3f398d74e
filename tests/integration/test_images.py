"""Images as callers send them, through the whole service."""

from __future__ import annotations

import io

import httpx
from PIL import Image

from tests.integration.conftest import MODEL, Service


def test_wrong_name(service: Service) -> None:
    """Neither the name nor the type decides what an image is."""
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "JPEG")
    url = f"{service.url}/v1/models/{MODEL}/classify"
    plain = httpx.post(url, content=out.getvalue()).raise_for_status().json()["results"][0]
    for name, kind in (("cat.png", "image/png"), ("cat.exe", "application/x-msdownload"), ("cat.svg", "image/svg+xml")):
        sent = {"file": (name, out.getvalue(), kind)}
        assert httpx.post(url, files=sent).raise_for_status().json()["results"][0] == plain
        headers = {"content-type": kind}
        assert httpx.post(url, content=out.getvalue(), headers=headers).raise_for_status().json()["results"][0] == plain
    text = httpx.post(url, files={"file": ("cat.jpg", b"hello", "image/jpeg")})
    assert (text.status_code, text.json()["code"]) == (415, "unsupported_image_format")
