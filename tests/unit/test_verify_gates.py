"""Verification sees what answers always the same, however small the probabilities are."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from eca_build.errors import BuildError
from eca_build.targets import EXACT, RANDOM, Gate
from eca_build.verify import compare, require_finite, rounding
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
        with pytest.raises(BuildError, match=r"does not follow the network: their correlation is -?0\.[01]"):
            compare(expected, got, gate.largest, gate.agreement, "test")


def test_a_network_that_gives_no_number_for_one_image_is_refused() -> None:
    expected = softmax(logits(4))
    require_finite(expected)
    expected[2] = np.nan
    with pytest.raises(BuildError, match="the network itself answers values that are not finite"):
        require_finite(expected)


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
    refused = pytest.raises(BuildError, match=r"their correlation is 0\.20 over .* 0\.25 is required")
    with nullcontext() if passes else refused:
        compare(expected.astype(np.float32), got, gate.largest, gate.agreement, "test")


def test_images_all_alike_are_compared_by_class() -> None:
    expected = np.repeat(softmax(logits(1)), 5, 0)
    assert compare(expected, expected, 2e-2, 0, "test").top1_agreement == 1
    with pytest.raises(BuildError, match="does not follow"):
        compare(expected, np.full_like(expected, 0.001), 2e-2, 0, "test")
    same = np.full((5, 1000), 0.001, np.float32)
    assert compare(same, same, 2e-2, 0, "test").top1_agreement == 1


@GATES
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_engine_that_answers_nothing_finite_is_refused(gate: Gate, wrong: float) -> None:
    """Once in all its answers: every comparison with NaN is false."""
    expected = softmax(logits(24))
    got = expected.copy()
    got[2, 3] = wrong
    with pytest.raises(BuildError, match=r"answered \(24, 1000\) with values that are not all finite"):
        compare(expected, got, gate.largest, gate.agreement, "test")


def test_a_probability_that_is_too_small_is_as_wrong_as_one_too_large() -> None:
    expected = np.full((8, 10), 0.1, np.float32)
    for change in (-0.03, 0.03):
        got = expected.copy()
        got[4, 5] += change
        with pytest.raises(BuildError, match=r"largest probability difference 3\.00e-02 on 8 images"):
            compare(expected, got, 2e-2, 0, "test")


def test_rounding_is_relative_and_not_of_what_float32_cannot_tell() -> None:
    exact = np.array([[0.9, 1e-3, 1e-30]])
    told = (exact * (1 + np.array([[1e-6, 1e-5, 0.5]]))).astype(np.float32)
    assert rounding(told, exact) == pytest.approx(1e-5, rel=0.02)
