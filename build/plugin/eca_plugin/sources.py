"""Which sources the kernels come from; needs neither Triton nor PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path


def kernels_sha256() -> str:
    """SHA-256 (hex) of all that decides the kernels: this package's modules."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.name.encode() + b"\0" + module.read_bytes())
    return digest.hexdigest()
