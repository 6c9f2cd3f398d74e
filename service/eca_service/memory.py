"""The memory that a gateway may take at worst, held against what it is given."""

from __future__ import annotations

from eca_service import cgroups
from eca_service.decoders import ROOM_BYTES
from eca_service.imaging import most_bytes
from eca_service.settings import Settings

OWN_BYTES = 200 << 20  # of a worker without any image


def worst_bytes(settings: Settings) -> int:
    """What all workers take where every image is one that takes as much as it may; deploy/capacity.md explains it."""
    decoding = ROOM_BYTES * max(settings.workers, settings.decode_threads)
    return settings.workers * (OWN_BYTES + most_bytes(settings.max_pixels)) + decoding + settings.max_inflight_bytes


def shortage(settings: Settings) -> str | None:
    """That images could have the gateway killed for its memory, and what to do, in a sentence; None where not."""
    worst, limit = worst_bytes(settings), cgroups.memory_bytes()
    if limit is None or worst <= limit:
        return None
    return (
        f"images could take up to {worst / 2**30:.1f} GiB of memory, and the container's limit is {limit / 2**30:.1f}; "
        f"raise it (ECA_GATEWAY_MEMORY, resources.limits), or lower ECA_DECODE_THREADS, {settings.decode_threads} now"
    )
