from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.numerics.geometry import slerp_coefficients


def gram_of(first: Any, second: Any) -> np.ndarray[Any, Any]:
    vectors = np.array([first, second], np.float64)
    return np.asarray(vectors @ vectors.T)


@given(st.floats(0.05, math.pi - 0.05), st.floats(0, 1), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_turn_by_a_fraction_of_the_angle(angle: float, t: float, first: float, second: float) -> None:
    """In the plane, unit vectors at 0 and `angle` give the one at t * angle; lengths only scale the terms."""
    gram = gram_of([first, 0], [second * math.cos(angle), second * math.sin(angle)])
    s0, s1 = slerp_coefficients(gram, t)
    turned = s0 * np.array([1, 0]) + s1 * np.array([math.cos(angle), math.sin(angle)])
    np.testing.assert_allclose(turned, [math.cos(t * angle), math.sin(t * angle)], atol=1e-9)


@pytest.mark.parametrize("cosine", [1.0, 0.99951, -0.99951, -1.0])
def test_nearly_straight_pairs_are_linear(cosine: float) -> None:
    gram = gram_of([3, 0], [2 * cosine, 2 * math.sqrt(max(1 - cosine**2, 0))])
    assert slerp_coefficients(gram, 0.25) == (0.75, 0.25)


@pytest.mark.parametrize("cosine", [0.99949, -0.99949])
def test_just_short_of_straight_they_are_not(cosine: float) -> None:
    angle = math.acos(cosine)
    gram = gram_of([3, 0], [2 * cosine, 2 * math.sqrt(1 - cosine**2)])
    expected = (math.sin(0.75 * angle) / math.sin(angle), math.sin(0.25 * angle) / math.sin(angle))
    np.testing.assert_allclose(slerp_coefficients(gram, 0.25), expected, rtol=1e-9)


def test_zero_vectors_are_at_a_right_angle_to_everything() -> None:
    half = math.sqrt(0.5)
    np.testing.assert_allclose(slerp_coefficients(gram_of([0, 0], [1, 2]), 0.5), (half, half))
    np.testing.assert_allclose(slerp_coefficients(gram_of([0, 0], [0, 0]), 0.5), (half, half))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_angles_that_are_not_numbers_are_linear(bad: float) -> None:
    gram = gram_of([1, 0], [0, 1])
    gram[0, 1] = gram[1, 0] = bad
    assert slerp_coefficients(gram, 0.25) == (0.75, 0.25)


def test_the_ends_are_the_vectors_themselves() -> None:
    gram = gram_of([1, 2, 3], [-3, 1, 2])
    assert slerp_coefficients(gram, 0.0) == (1.0, 0.0)
    assert slerp_coefficients(gram, 1.0) == (0.0, 1.0)
