"""Memory that a Triton on the same host reads too: batches are laid into it, and their messages only say where.

What that is worth against tensors in the message, tests/load/transport.py measures.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eca_service.leftovers import SHM

SLOTS = 4  # as many batches as travel at once; where there are more, the others go in their messages
SLOT_BYTES = 32 * 224 * 224 * 3


class Region:
    """One mapped file of SLOTS slots. Triton must map it by its name before `unlink`; then no crash can leave it.

    Triton only reads: a slot that is used again while it still reads for a caller that left harms nobody.
    """

    def __init__(self) -> None:
        """Raises OSError where there is no room: Triton's own share of /dev/shm is left alone."""
        size = SLOTS * SLOT_BYTES
        room = os.statvfs(SHM)
        if room.f_bavail * room.f_frsize < 2 * size:
            raise OSError(f"/dev/shm has no {2 * size >> 20} MiB to spare")
        self.name = f"eca_gateway_{os.getpid()}_{secrets.token_hex(4)}"
        self.size = size
        self._path = SHM / self.name
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)  # else a full file system would be a SIGBUS later
            self._bytes = np.frombuffer(mmap.mmap(handle, size), np.uint8)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(handle)
        self._free = [slot * SLOT_BYTES for slot in range(SLOTS)]

    def lay(self, images: Sequence[NDArray[np.uint8]]) -> int | None:
        """Copies the images, of one shape, into a free slot and returns its offset; None where none takes them."""
        size = images[0].size
        if not self._free or len(images) * size > SLOT_BYTES:
            return None
        offset = self._free.pop()
        for index, image in enumerate(images):
            start = offset + index * size
            self._bytes[start : start + size] = image.reshape(-1)
        return offset

    def free(self, offset: int) -> None:
        """Takes a slot back."""
        self._free.append(offset)

    def unlink(self) -> None:
        """Takes the name away; who has mapped it keeps it."""
        self._path.unlink(missing_ok=True)
