"""What the workers of one service know of each other: a byte each, in a file that all of them have mapped."""

from __future__ import annotations

import mmap
from pathlib import Path

SILENT, UNREADY, READY = 0, 1, 2  # not listening; listening without golden answers; with them


class Peers:
    """The board of all workers, seen by worker `index`; without a file the only worker there is."""

    def __init__(self, index: int = 0, board: Path | None = None) -> None:
        self.index = index
        self.folder = board.parent if board else None  # of what the workers have in common
        self.listening = False
        self._board: bytearray | mmap.mmap = bytearray(1)
        if board:
            with board.open("r+b") as file:
                self._board = mmap.mmap(file.fileno(), 0)

    def tell(self, ready: bool) -> None:
        """Tells the others how this worker is; nobody asks after one that does not listen yet."""
        self._board[self.index] = (READY if ready else UNREADY) if self.listening else SILENT

    def unready(self) -> list[int]:
        """The other workers that listen and are not ready: any request may reach them."""
        return [index for index, state in enumerate(bytes(self._board)) if index != self.index and state == UNREADY]

    @property
    def others_listen(self) -> bool:
        """Whether requests may reach another worker."""
        return any(state != SILENT for index, state in enumerate(bytes(self._board)) if index != self.index)

    def listens(self, index: int) -> bool:
        """Whether that worker listens."""
        return self._board[index] != SILENT

    def ended(self, index: int) -> None:
        """That worker is no more."""
        self._board[index] = SILENT
