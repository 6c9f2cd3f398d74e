"""What batches cost by their size, learnt from those that ran, and how large they should be."""

from __future__ import annotations

SHORT_S = 0.025  # a batch that takes no longer delays nobody, and spares calls, each a millisecond of a core
WORTH_WAITING = 0.95  # a batch of twice the images is left where it takes more than this of the time, image by image
TRIED_AGAIN = 200  # batches after which one of twice the images is tried again


class Costs:
    """Seconds that a batch takes by its size: an exponential mean for each power of two, learnt from what ran."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._known: dict[int, float] = {}
        self._each: dict[int, float] = {}  # of one image in it
        self._learnt = 0

    def learn(self, size: int, seconds: float) -> None:
        """Takes one batch into account."""
        bucket = (size - 1).bit_length()
        for means, value in ((self._known, seconds), (self._each, seconds / size)):
            before = means.get(bucket, value)
            means[bucket] = before + self._weight * (value - before)
        self._learnt += 1
        if self._learnt % TRIED_AGAIN == 0:
            self._each.pop(self._largest() + 1, None)

    def worthwhile(self, most: int) -> int:
        """Images that a batch should have, `most` at most: on a GPU many, on a CPU hardly more than it has cores.

        A batch's images are all answered when the last one is, so that more together must save time.
        """
        return min(most, 1 << self._largest())

    def _largest(self) -> int:
        bucket = 0
        while bucket in self._each:
            if bucket + 1 in self._each and not self._worthwhile(bucket + 1):
                break
            bucket += 1
        return bucket

    def _worthwhile(self, bucket: int) -> bool:
        return self._known[bucket] <= SHORT_S or self._each[bucket] <= WORTH_WAITING * self._each[bucket - 1]

    def each(self, size: int) -> float:
        """What an image takes in a batch of `size`; of sizes not seen yet, in the next smaller one."""
        bucket = (size - 1).bit_length()
        known = [one for one in self._each if one <= bucket] or list(self._each)
        return self._each[max(known)] if known else 0.0

    def seconds(self, size: int) -> float:
        """What a batch of `size` images will take; of sizes not seen yet, what the next smaller one took."""
        bucket = (size - 1).bit_length()
        smaller = [known for known in self._known if known <= bucket]
        nearest = max(smaller) if smaller else min(self._known, default=None)
        return 0.0 if nearest is None else self._known[nearest]
