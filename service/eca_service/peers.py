"""What the workers of one service know of each other: two bytes each, in a file that all of them have mapped."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

SILENT, UNREADY, READY = 0, 1, 2  # not listening; listening without golden answers; with them
BEAT_EVERY_S = 1.0
ANNOUNCED = "announced"


def make_board(file: Path, workers: int) -> None:
    """Makes the file of so many workers: how each is, and then the beat of each."""
    file.write_bytes(bytes(2 * workers))


class Peers:
    """The board of all workers, seen by worker `index`, or by nobody's: -1; without a file the only worker there is."""

    def __init__(self, index: int = 0, board: Path | None = None) -> None:
        self.index = index
        self.folder = board.parent if board else None  # of what the workers have in common
        self.listening = False
        mapped: bytearray | mmap.mmap = bytearray(2)
        if board:
            with board.open("r+b") as file:
                mapped = mmap.mmap(file.fileno(), 0)
        both, workers = memoryview(mapped), len(mapped) // 2
        self._states, self._beats = both[:workers], both[workers:]

    def tell(self, ready: bool) -> None:
        """Tells the others how this worker is; nobody asks after one that does not listen yet."""
        self._states[self.index] = (READY if ready else UNREADY) if self.listening else SILENT

    def unready(self) -> list[int]:
        """The other workers that listen and are not ready: any request may reach them."""
        return [index for index, state in enumerate(self._states) if index != self.index and state == UNREADY]

    @property
    def others_listen(self) -> bool:
        """Whether requests may reach another worker."""
        return any(state != SILENT for index, state in enumerate(self._states) if index != self.index)

    @property
    def others_ready(self) -> bool:
        """Whether another worker answers."""
        return any(state == READY for index, state in enumerate(self._states) if index != self.index)

    def announces(self) -> bool:
        """Whether this worker is to say that the service is ready; the first that asks is."""
        if self.folder is None:
            return True
        try:
            (self.folder / ANNOUNCED).touch(exist_ok=False)
        except OSError:  # another has, or nothing can be written there any more
            return False
        return True

    async def beat(self) -> None:
        """Shows that this worker's event loop runs, until cancelled."""
        while True:
            self._beats[self.index] = self._beats[self.index] % 255 + 1
            await asyncio.sleep(BEAT_EVERY_S)

    def last_beat(self, index: int) -> int:
        """That worker's: 1 to 255, another one each time; 0 before its event loop runs."""
        return self._beats[index]

    def ended(self, index: int) -> None:
        """That worker is no more."""
        self._states[index] = SILENT
        self._beats[index] = 0
