"""How much each caller may send, counted in images: a table of accounts, which the workers of one service share."""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

from eca_service import metrics
from eca_service.errors import ServiceError

ACCOUNTS = 1 << 15
PLACES = 8  # in which an account may lie
ROW = struct.Struct("<Qd")  # the account's hash; when it will have everything back, by the monotonic clock


class Rates:
    """`rate` images a second and `burst` at once for every account (the generic cell rate algorithm, ITU-T I.371).

    A request is let in while its account holds one image, and pays for its further images once they are counted, so
    that the account may owe; nothing that was read is thrown away. An account that has everything back is as good as
    forgotten, and gives its place away; where the table is full, the one that is nearest to it does.

    With a `file`, which `make_table` made, all processes that are given it count together. They take no lock: two that
    write at the same moment count one image too few.
    """

    def __init__(
        self,
        rate: float,
        burst: int | None = None,
        file: Path | None = None,
        accounts: int = ACCOUNTS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self.burst = burst or math.ceil(rate)
        self._now = now
        self._table: bytearray | mmap.mmap = bytearray(ROW.size * accounts)
        if file:
            with file.open("r+b") as opened:
                self._table = mmap.mmap(opened.fileno(), 0)

    def require(self, account: str) -> None:
        """Takes one image; raises rate_limited, with the time until there is one, where there is none."""
        key, place, full_at = self._find(account)
        now = self._now()
        wait_s = full_at - now - (self.burst - 1) / self.rate
        if wait_s > 1e-9:
            metrics.rejected.labels("rate_limited").inc()
            raise ServiceError(
                "rate_limited",
                f"{self.rate:g} images a second are allowed, {self.burst} at once; the next one in {wait_s:.1f} s",
                max(1, math.ceil(wait_s)),
            )
        ROW.pack_into(self._table, place, key, max(full_at, now) + 1 / self.rate)

    def charge(self, account: str, images: int) -> None:
        """Takes `images`, there or not."""
        key, place, full_at = self._find(account)
        ROW.pack_into(self._table, place, key, max(full_at, self._now()) + images / self.rate)

    def _find(self, account: str) -> tuple[int, int, float]:
        """The account's hash, where its row is or may be written, and when it has everything back."""
        key = int.from_bytes(hashlib.blake2b(account.encode(), digest_size=8).digest(), "little") or 1
        rows = len(self._table) // ROW.size
        places = [ROW.size * ((key + step) % rows) for step in range(min(PLACES, rows))]
        found = {place: ROW.unpack_from(self._table, place) for place in places}
        for place, (other, full_at) in found.items():
            if other == key:
                return key, place, full_at
        return key, min(found, key=lambda place: found[place][1]), 0.0


def make_table(file: Path) -> None:
    """The table of several processes, with all accounts full."""
    file.write_bytes(bytes(ROW.size * ACCOUNTS))
