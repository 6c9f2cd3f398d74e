"""Where the embedded Triton cannot run, the sentence names a way that exists."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from eca_service.triton import server

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("machine", "libc", "says"),
    [
        ("aarch64", ("glibc", "2.36"), "this is Linux aarch64; NVIDIA's own image runs on ARM too"),
        ("x86_64", ("glibc", "2.31"), "this is glibc 2.31; in a clone"),
        ("x86_64", ("", ""), "this is another libc"),
    ],
)
def test_the_way_out_exists(monkeypatch: pytest.MonkeyPatch, machine: str, libc: tuple[str, str], says: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(server.TritonUnavailable) as raised:
        server.installation()
    assert says in str(raised.value)
    assert "ECA_TRITON_URL" in str(raised.value)
    files = re.findall(r"-f (\S+)", str(raised.value))
    assert files == ["docker-compose.yml", "deploy/compose.cpu.yml"]
    assert all((ROOT / file).exists() for file in files)
