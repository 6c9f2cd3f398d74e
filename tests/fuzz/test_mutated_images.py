"""Mutated images in the decoder: an answer or a caller's error, the same in both ways, in little time."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from eca_service.contract import Preprocessing
from eca_service.errors import ServiceError
from eca_service.imaging import decode

from tests.fuzz.mutations import mutated, whole_images

RECIPE = Preprocessing(resize=40, crop=32)
MOST_PIXELS = 2_000_000


def outcome(data: bytes, fast: bool) -> str:
    """`ok`, or the error's code; anything but a caller's error is raised."""
    try:
        pixels = decode(data, RECIPE, MOST_PIXELS, fast).pixels
    except ServiceError as error:
        if error.kind.http >= 500:
            raise
        return error.code
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    return "ok"


def test_the_images_that_are_mutated_are_whole() -> None:
    assert {outcome(data, fast) for data in whole_images() for fast in (False, True)} == {"ok"}


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_mutated_images(count: int) -> None:
    seen: dict[str, int] = {}
    for number, data in enumerate(itertools.islice(mutated(seed=count), count)):
        started = time.thread_time()
        ways = [outcome(data, fast) for fast in (False, True)]
        assert time.thread_time() - started < 2, number
        assert ways[0] == ways[1], number
        seen[ways[0]] = seen.get(ways[0], 0) + 1
    assert set(seen) >= {"ok", "image_truncated", "image_undecodable", "image_too_many_pixels"}, seen
    print(seen)
