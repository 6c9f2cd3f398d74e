"""Who may come in: a permit first, bounded by images and by bytes, before anything is read or decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eca_service import metrics
from eca_service.errors import ServiceError
from eca_service.journal import Entry

TAKEN_ON_TRUST = 1 << 20  # bytes
MOST_PREDICTIONS = 1 << 16  # in an answer: a million would hold up everybody for seconds, and take half a gigabyte


class Admission:
    """The permits of this process: at most `max_images` images and `max_bytes` bytes of bodies at once."""

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.images = 0
        self.size = 0
        self.requests = 0
        self._answers: dict[Callable[[], None], int] = {}  # what cuts each off, and its bytes; the oldest first

    def enter(self, size: int, entry: Entry) -> Permit:
        """A permit for a request of one image and `size` bytes; overloaded where there is no room for it.

        Of a large body that was only announced it takes a part, and grows as the body comes: a few callers who send
        none would shut out all others.
        """
        permit = Permit(self, entry)
        permit.grow(images=1, size=min(size, TAKEN_ON_TRUST))
        self.requests += 1
        metrics.inflight.set(self.requests)
        return permit

    @contextmanager
    def answering(self, size: int, cut: Callable[[], None]) -> Iterator[None]:
        """Around an answer of `size` bytes while its caller takes it, which may be never. It counts like a body and
        gives way to whatever comes later: where there is no room for that, `cut` is called for the oldest.
        """
        self._clear(size)
        self._answers[cut] = size
        self.size += size
        try:
            yield
        finally:
            self._drop(cut)

    def fits(self, images: int, size: int) -> bool:
        """Whether there is room for so many images and bytes; answers are cut off where they alone are in the way."""
        if self.images + images > self.max_images or self.size - sum(self._answers.values()) + size > self.max_bytes:
            return False
        self._clear(size)
        return True

    def _clear(self, size: int) -> None:
        """Cuts off answers until there is room for `size` bytes, or there are none."""
        while self._answers and self.size + size > self.max_bytes:
            oldest = next(iter(self._answers))
            self._drop(oldest)
            metrics.rejected.labels("overloaded").inc()
            oldest()

    def _drop(self, cut: Callable[[], None]) -> None:
        self.size -= self._answers.pop(cut, 0)


class Permit:
    """What one request holds, given back by `release`; `entry` is the request's record."""

    __slots__ = ("_admission", "entry", "images", "size")

    def __init__(self, admission: Admission, entry: Entry) -> None:
        self._admission = admission
        self.entry = entry
        self.images = 0
        self.size = 0

    def grow(self, images: int = 0, size: int = 0) -> None:
        """Takes more, or raises overloaded and takes nothing."""
        house = self._admission
        if not house.fits(images, size):
            metrics.rejected.labels("overloaded").inc()
            raise ServiceError(
                "overloaded",
                f"{house.images} images in {house.size} bytes are in flight, there is no room for "
                f"{self.images + images} more; try again in a moment",
            )
        house.images += images
        house.size += size
        self.images += images
        self.size += size

    def cover(self, size: int) -> None:
        """Grows to `size` bytes where it is smaller: a body whose length was not announced."""
        if size > self.size:
            self.grow(size=size - self.size)

    def release(self) -> None:
        """Gives all back; once."""
        house = self._admission
        house.images -= self.images
        house.size -= self.size
        house.requests -= 1
        self.images = self.size = 0
        metrics.inflight.set(house.requests)


class Margin:
    """The share of a request's time that its predicted answer may take: what is over it is refused at once.

    It shrinks where what was accepted comes too late, as on a machine that does much else, and grows again where it
    does not: so at most about one in a hundred is late.
    """

    LEAST, MOST = 0.4, 0.8

    def __init__(self) -> None:
        self.share = self.MOST

    def learn(self, late: bool) -> None:
        """How an accepted request ended."""
        self.share = max(self.LEAST, 0.95 * self.share) if late else min(self.MOST, self.share + 0.0005)


def require_few(images: int, most: int) -> None:
    """Raises bad_request for too many images in a request; asked before any is unpacked, for there may be millions."""
    if images > most:
        raise ServiceError("bad_request", f"the request holds {images} images, at most {most} are allowed")


def require_short(parts: int, predictions: int) -> None:
    """Raises bad_request where several images, or models, would have too many together; one may have all."""
    if parts > 1 and predictions > MOST_PREDICTIONS:
        raise ServiceError(
            "bad_request",
            f"the answer would hold {predictions} predictions, at most {MOST_PREDICTIONS} are allowed for several "
            "images or models; ask for fewer at a time, or for a smaller top_k",
        )
