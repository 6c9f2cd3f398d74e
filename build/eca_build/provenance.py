"""What a result comes from: the contents of files, our own code, the versions of what is installed, the processor."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

BLOCK = 1 << 20  # bytes: a file may be larger than the memory


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def code_sha256() -> str:
    """SHA-256 (hex) of this package's modules: an upgrade that changes none of them builds nothing anew."""
    digest = hashlib.sha256()
    home = Path(__file__).parent
    for module in sorted(home.rglob("*.py")):
        digest.update(str(module.relative_to(home)).encode() + b"\0" + module.read_bytes())
    return digest.hexdigest()


def versions(*distributions: str) -> dict[str, str]:
    """The versions of those that are installed, by name."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor(field: str) -> str:
    """What the kernel says of this machine's first processor, such as its `flags`; empty where it says nothing."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""
