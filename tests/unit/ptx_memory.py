"""A GPU's memory as a PTX program sees it; what it must not do there is an AssertionError."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Ints: TypeAlias = NDArray[np.int64]
FIRST, APART = 1 << 40, 1 << 36  # where buffers begin: an offset that overflowed 32 bits meets none of them
NOBODY, MANY = -1, -2
WARP, WARPGROUP = 32, 128


class DeviceMemory:
    """Buffers far from each other. Whatever reads or writes beside one, or not aligned to its own size, is told."""

    def __init__(self) -> None:
        self._buffers: list[Bytes] = []
        self.bytes_read: list[int] = []  # of each

    def add(self, buffer: Bytes) -> int:
        """The address of a buffer, uint8 [n], which stays the caller's."""
        self._buffers.append(buffer)
        self.bytes_read.append(0)
        return FIRST + (len(self._buffers) - 1) * APART

    def read(self, addresses: Ints, count: int) -> Bytes:
        """`count` bytes at each address: [n, count]."""
        which, places = self._places(addresses, count)
        self.bytes_read[which] += places.size
        return self._buffers[which][places]

    def write(self, addresses: Ints, values: Bytes) -> None:
        """`values` [n, count] at the addresses."""
        which, places = self._places(addresses, values.shape[1])
        buffer = self._buffers[which]
        buffer[places] = values
        assert (buffer[places] == values).all(), "two threads write different values to one place"

    def _places(self, addresses: Ints, count: int) -> tuple[int, Ints]:
        which, offsets = np.divmod(addresses - FIRST, APART)
        assert (which == which[0]).all(), "no buffer is there"
        assert 0 <= which[0] < len(self._buffers), "no buffer is there"
        assert (offsets % count == 0).all(), f"{count} bytes that are not aligned"
        buffer = self._buffers[which[0]]
        assert offsets.max() + count <= len(buffer), "beyond the end of a buffer"
        return int(which[0]), offsets[:, None] + np.arange(count)


class Accesses:
    """Who has read, or written, each byte since the last barrier: a range of threads, and a warp before its own."""

    def __init__(self, size: int) -> None:
        self._lowest = np.full(size, NOBODY)
        self._highest = np.full(size, NOBODY)
        self._warp = np.full(size, NOBODY)

    def clear(self) -> None:
        """All threads have come to a barrier."""
        for one in (self._lowest, self._highest, self._warp):
            one[:] = NOBODY

    def meet(self) -> None:
        """Each warp has come to a barrier of its own: what its threads did concerns other warps only."""
        warp = self._lowest // WARP
        within = (self._highest != NOBODY) & (warp == self._highest // WARP)
        joined = np.where((self._warp == NOBODY) | (self._warp == warp), warp, MANY)
        self._warp[within] = joined[within]
        self._lowest[within] = self._highest[within] = NOBODY

    def add(self, by: Ints, places: Ints) -> None:
        """Thread `by` did so at `places`; both [n, m]."""
        first = self._highest[places] == NOBODY
        self._lowest[places[first]] = self._highest[places[first]] = by[first]
        np.minimum.at(self._lowest, places, by)
        np.maximum.at(self._highest, places, by)

    def others(self, by: Ints, places: Ints) -> bool:
        """Whether a thread other than `by` did so at any of the `places`."""
        threads = (self._highest[places] == NOBODY) | (self._lowest[places] == by) & (self._highest[places] == by)
        warps = (self._warp[places] == NOBODY) | (self._warp[places] == by // WARP)
        return not (threads & warps).all()


class SharedMemory:
    """What the threads of a program share. Two of which one writes, at one place with no barrier between, are told.

    What nobody has written is 0xFF, NaN in every type.
    """

    def __init__(self, size: int) -> None:
        self._bytes = np.full(size, 0xFF, np.uint8)
        self._writers, self._readers = Accesses(size), Accesses(size)
        self._coming: list[list[tuple[Ints, Ints, Bytes]]] = [[]]  # groups of copies that may arrive at any time
        self._multiplying: list[list[tuple[int, Ints]]] = [[]]  # groups of what is read at any time
        self._multiplied: list[tuple[int, Ints]] = []  # what a warpgroup has read, which the others do not know
        self._unfenced = np.zeros(size, bool)  # written, and not yet shown to the tensor cores

    def barrier(self, of_warps: bool) -> None:
        """All threads have come here, or those of each warp."""
        if not of_warps:
            self._multiplied.clear()
        for one in (self._writers, self._readers):
            if of_warps:
                one.meet()
            else:
                one.clear()

    def read(self, threads: Ints, addresses: Ints, count: int) -> Bytes:
        """`count` bytes at each address: [n, count]."""
        by, places = self._places(threads, addresses, count)
        assert not self._writers.others(by, places), "a thread reads what another writes"
        self._readers.add(by, places)
        return self._bytes[places]

    def write(self, threads: Ints, addresses: Ints, values: Bytes) -> None:
        """`values` [n, count] at the addresses."""
        by, places = self._places(threads, addresses, values.shape[1])
        self._require_alone(by, places)
        self._store(by, places, values)

    def copy(self, threads: Ints, addresses: Ints, values: Bytes) -> None:
        """As `write`, but it may arrive at any time until its group is waited for; here it comes as late as it may."""
        by, places = self._places(threads, addresses, values.shape[1])
        self._require_alone(by, places)
        self._coming[-1].append((by, places, values))

    def commit(self) -> None:
        """Makes a group of the copies since the last one."""
        self._coming.append([])

    def wait(self, groups: int) -> None:
        """Until all groups but so many of the last have arrived."""
        arrived = max(0, len(self._coming) - 1 - groups)
        for group in self._coming[:arrived]:
            for by, places, values in group:
                self._store(by, places, values)
        self._coming = self._coming[arrived:]

    def fence(self) -> None:
        """What was written until now may be read by `multiplied`."""
        self._unfenced[:] = False

    def multiplied(self, warpgroup: int, addresses: Ints, count: int) -> Bytes:
        """As `read`, but the warpgroup may do it at any time until its group is waited for."""
        by, places = self._places(np.full(len(addresses), NOBODY), addresses, count)
        assert not self._writers.others(by, places), "a warpgroup multiplies what a thread writes"
        assert not self._unfenced[places].any(), "what a warpgroup multiplies is not fenced"
        self._multiplying[-1].append((warpgroup, places))
        return self._bytes[places]

    def commit_products(self) -> None:
        """Makes a group of what is multiplied since the last one."""
        self._multiplying.append([])

    def wait_for_products(self, groups: int) -> None:
        """Each warpgroup waits until all its groups but so many of the last are read."""
        read = max(0, len(self._multiplying) - 1 - groups)
        for group in self._multiplying[:read]:
            self._multiplied += group
        self._multiplying = self._multiplying[read:]

    def _store(self, by: Ints, places: Ints, values: Bytes) -> None:
        self._bytes[places] = values
        assert (self._bytes[places] == values).all(), "two threads write different values to one place"
        self._writers.add(by, places)
        self._unfenced[places] = True

    def _places(self, threads: Ints, addresses: Ints, count: int) -> tuple[Ints, Ints]:
        """Which thread is at which bytes, both [n, count]."""
        assert (addresses % count == 0).all(), f"{count} bytes that are not aligned"
        assert addresses.min() >= 0, "before the shared memory"
        assert addresses.max() + count <= len(self._bytes), "beyond the shared memory"
        places = addresses[:, None] + np.arange(count)
        for group in self._coming:
            for _, coming, _ in group:
                assert not np.isin(places, coming).any(), "what is being copied there is not waited for"
        return np.broadcast_to(threads[:, None], places.shape), places

    def _require_alone(self, by: Ints, places: Ints) -> None:
        assert not self._writers.others(by, places), "a thread writes what another writes"
        assert not self._readers.others(by, places), "a thread writes what another reads"
        for group in self._multiplying:
            for _, read in group:
                assert not np.isin(places, read).any(), "what is multiplied there is not waited for"
        for warpgroup, read in self._multiplied:
            assert not np.isin(places[by // WARPGROUP != warpgroup], read).any(), "a thread writes what another reads"
