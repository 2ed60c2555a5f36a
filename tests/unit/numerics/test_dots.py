"""Dot products of every pair, against exact sums of the products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cuvee.numerics.dots import pairwise_dots

Array = np.ndarray[Any, Any]


def exactly(a: Array, b: Array) -> float:
    return math.fsum(x * y for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-18, 1e17, 1e25])
@pytest.mark.parametrize("shape", [(5,), (1024,), (3, 2000)])
def test_every_pair_wherever_values_lie(shape: tuple[int, ...], scale: float, dtype: type) -> None:
    """Squares of 1e-30 vanish in float32 and those of 1e25 overflow there."""
    common = np.random.default_rng(0).standard_normal(shape)
    random = np.random.default_rng(1)
    arrays = [(scale * (common + 0.01 * random.standard_normal(shape))).astype(dtype) for _ in range(3)]
    found = pairwise_dots(arrays)
    expected = [exactly(arrays[i], arrays[j]) for i in range(3) for j in range(i + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-7 if dtype is np.float32 else 1e-13)


def test_products_of_opposite_and_of_vanishing_arrays() -> None:
    a = np.arange(4000, dtype=np.float32)
    assert pairwise_dots([a, -a, np.zeros_like(a)]) == pytest.approx([exactly(a, a) * x for x in (1, -1, 1, 0, 0, 0)])


def test_one_small_array_among_large_ones_is_not_lost() -> None:
    a, b = np.full(3000, 2.0, np.float32), np.full(3000, 2.0**-80, np.float32)
    assert pairwise_dots([a, b]) == [12000.0, 3000 * 2.0**-79, 3000 * 2.0**-160]


def test_wide_products_do_not_lose_what_is_left_of_a_sum_that_cancels() -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 100_000)).astype(np.float32)
    b -= np.float32(exactly(a, b) / exactly(a, a)) * a
    cancelled = pairwise_dots([a, b], wide=True)[1]
    assert abs(cancelled) < 1
    assert abs(cancelled - exactly(a, b)) < 1e-9
