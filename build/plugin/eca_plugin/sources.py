"""Which sources the kernels come from; needs neither Triton nor PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path


def kernels_sha256() -> str:
    """SHA-256 (hex) of all that decides the kernels: this package's modules and sources in CUDA C++."""
    digest = hashlib.sha256()
    for module in sorted(file for file in Path(__file__).parent.iterdir() if file.suffix in {".py", ".cu"}):
        digest.update(module.name.encode() + b"\0" + module.read_bytes())
    return digest.hexdigest()
