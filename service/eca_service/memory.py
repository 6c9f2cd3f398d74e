"""The memory that a gateway may take at worst, held against what it is given."""

from __future__ import annotations

import contextlib
from pathlib import Path

from eca_service.decoders import ROOM_BYTES
from eca_service.imaging import most_bytes
from eca_service.settings import Settings

OWN_BYTES = 200 << 20  # of a worker without any image
# The limit of the container that this runs in: by cgroups' second version, or their first.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
NO_LIMIT = 1 << 60  # how the first version writes that there is none


def worst_bytes(settings: Settings) -> int:
    """What all workers take where every image is one that takes as much as it may; deploy/capacity.md explains it."""
    decoding = ROOM_BYTES * max(settings.workers, settings.decode_threads)
    return settings.workers * (OWN_BYTES + most_bytes(settings.max_pixels)) + decoding + settings.max_inflight_bytes


def limit_bytes() -> int | None:
    """The container's limit, None where there is none."""
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            found = int(file.read_text())
            return found if found < NO_LIMIT else None
    return None


def shortage(settings: Settings) -> str | None:
    """That images could have the gateway killed for its memory, and what to do, in a sentence; None where not."""
    worst, limit = worst_bytes(settings), limit_bytes()
    if limit is None or worst <= limit:
        return None
    return (
        f"images could take {worst / 2**30:.1f} GiB of memory, and the container's limit is {limit / 2**30:.1f}; "
        f"raise it (ECA_GATEWAY_MEMORY, resources.limits), or lower ECA_DECODE_THREADS, {settings.decode_threads} now"
    )
