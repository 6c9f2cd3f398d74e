"""Verification sees what answers always the same, however small the probabilities are."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from eca_build.errors import BuildError
from eca_build.targets import EXACT, RANDOM, Gate
from eca_build.verify import compare
from numpy.typing import NDArray

GATES = pytest.mark.parametrize("gate", [EXACT["fp16"], EXACT["bf16"], RANDOM])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    powers = np.exp(logits)
    answers: NDArray[np.float32] = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return answers


def logits(images: int, classes: int = 1000) -> NDArray[np.float64]:
    """Those of a network that is sure of nothing but that it is never the first of its classes: no other has twice its
    share.
    """
    generator = np.random.default_rng(0)
    made = generator.normal(0, 0.1, (1, classes)) + generator.normal(0, 0.05, (images, classes))
    made[:, 0] = -50
    return made


@GATES
@pytest.mark.parametrize("images", [24, 1])
def test_an_engine_that_rounds_passes(gate: Gate, images: int) -> None:
    true = logits(images)
    rounded = true * (1 + np.random.default_rng(1).normal(0, 0.01, true.shape))
    figures = compare(softmax(true), softmax(rounded), gate.largest, gate.agreement, "test")
    assert figures.largest_difference > 0


@GATES
@pytest.mark.parametrize("classes", [1000, 21_841])
def test_an_engine_that_answers_always_the_same_does_not(gate: Gate, classes: int) -> None:
    expected = softmax(logits(24, classes))
    assert expected.max() < 2 / classes
    for got in (
        np.broadcast_to(expected.mean(0), expected.shape),
        np.broadcast_to(expected[3], expected.shape),
        np.roll(expected, 1, 0),  # or gives another image's answer
        np.full_like(expected, 1 / classes),
    ):
        with pytest.raises(BuildError, match=r"does not follow the network: they correlate by -?0\.[01]"):
            compare(expected, got, gate.largest, gate.agreement, "test")


@pytest.mark.parametrize(("share", "passes"), [(0.3, True), (0.2, False)])
def test_how_far_an_engine_must_follow(share: float, passes: bool) -> None:
    """Correct int8 of random MobileNets comes down to 0.49."""
    expected = softmax(logits(24)).astype(np.float64)
    apart = expected - expected.mean(0)
    noise = np.random.default_rng(2).normal(size=apart.shape)
    noise -= noise.mean(0)
    noise -= apart * (noise * apart).sum() / (apart * apart).sum()
    noise *= np.linalg.norm(apart) / np.linalg.norm(noise)
    got = (expected.mean(0) + share * apart + (1 - share**2) ** 0.5 * noise).astype(np.float32)
    gate = RANDOM
    refused = pytest.raises(BuildError, match=r"they correlate by 0\.20 over .* 0\.25 is asked")
    with nullcontext() if passes else refused:
        compare(expected.astype(np.float32), got, gate.largest, gate.agreement, "test")


def test_images_all_alike_are_compared_by_class() -> None:
    expected = np.repeat(softmax(logits(1)), 5, 0)
    assert compare(expected, expected, 2e-2, 0, "test").top1_agreement == 1
    with pytest.raises(BuildError, match="does not follow"):
        compare(expected, np.full_like(expected, 0.001), 2e-2, 0, "test")
    same = np.full((5, 1000), 0.001, np.float32)
    assert compare(same, same, 2e-2, 0, "test").top1_agreement == 1
