from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cuvee.numerics.arrays import as_mask, dot64, sum_64, sum_of, to_numpy, with_sign_of
from cuvee.numerics.combine import divisor, weighted_sum

RNG = np.random.default_rng(8)
ARRAYS = [RNG.normal(0, scale, 5000).astype(np.float32) for scale in (1, 20, 0.003, 4)]


@pytest.mark.parametrize(
    "weights", [(0.3, 0.7, -1.2, 5.0), (1, 1, 1, 1), (0.25,) * 4, (0, 0, 0, 0), (0.1,) * 4, (2, 0, 0, 0)]
)
@pytest.mark.parametrize(("scale", "divide_by"), [(1.0, 1.0), (0.7, 1.0), (1.0, 3.0), (-2.0, 0.3)])
def test_weighted_sum_is_that_of_float64(weights: tuple[float, ...], scale: float, divide_by: float) -> None:
    before = [array.copy() for array in ARRAYS]
    found = weighted_sum(ARRAYS, weights, scale=scale, divide_by=divide_by)
    terms = np.stack(
        [array.astype(np.float64) * w * scale / divide_by for array, w in zip(ARRAYS, weights, strict=True)]
    )
    # One product, up to three sums and one more product, each wrong by 2^-24 of the terms at most.
    assert (np.abs(found - terms.sum(0)) <= 6 * 2.0**-24 * np.abs(terms).sum(0)).all()
    assert found.dtype == np.float32
    for array, copy in zip(ARRAYS, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 49])
@pytest.mark.parametrize("weight", [1.0, 0.1, 3.0])
def test_the_mean_of_equal_values_is_the_value(count: int, weight: float) -> None:
    values = ARRAYS[0]
    found = weighted_sum([values] * count, [weight] * count, divide_by=divisor([weight] * count))
    # n values add up with n - 1 roundings at most; for two, no rounding at all is needed
    assert (np.abs(found - values) <= np.spacing(np.abs(values)) * (0 if count <= 2 else count)).all()


def test_values_that_cancel_cancel_exactly() -> None:
    assert not weighted_sum([ARRAYS[0], -ARRAYS[0]], [0.3, 0.3]).any()


def test_divisors() -> None:
    assert divisor([0.5, 1.5]) == 2
    assert divisor([0.1] * 10) == 1.0, "ten tenths are one, without the error of adding them in turn"
    assert divisor([1, -1]) == 1
    assert divisor([1e-9]) == 1
    assert divisor([1e-7]) == 1e-7
    assert divisor([-3]) == -3


@pytest.mark.parametrize("size", [1, 1000, 1024, 5000, 1 << 20])
def test_sums_of_float32_are_close_however_many_are_summed(size: int) -> None:
    import torch

    rng = np.random.default_rng(size)
    array, mask = rng.random(size).astype(np.float32), (rng.random(size) < 0.4).astype(np.float32)
    for times in (None, mask):
        expected = math.fsum((array if times is None else array * times).astype(np.float64))
        assert sum_64(array, times) == pytest.approx(expected, rel=2e-7 if size < 5000 else 2e-8)
        assert sum_64(array.astype(np.float64), times) == pytest.approx(expected, rel=1e-12)
        tensor = None if times is None else torch.from_numpy(times)
        assert sum_64(torch.from_numpy(array), tensor) == pytest.approx(expected, rel=1e-12)


def test_small_numbers_after_a_large_one_are_not_lost() -> None:
    array = np.full(1 << 20, 0.1, np.float32)
    array[0] = 2.0**30
    lost = 1024 * 0.1  # at most: those of the large one's own run
    assert sum_64(array) == pytest.approx(math.fsum(array.astype(np.float64)), abs=lost)


def test_products_are_accumulated_in_float64() -> None:
    import torch

    array = np.full(1 << 20, 0.1, np.float32)
    array[0] = 2.0**30
    squares = math.fsum(array.astype(np.float64) ** 2)
    for form in (array, array.reshape(1024, -1), torch.from_numpy(array)):
        assert dot64(form, form) == pytest.approx(squares, rel=1e-12)


def test_dot_of_two() -> None:
    a, b = np.array([[1.0, 2], [3, -4]], np.float32), np.array([[5.0, 6], [0.5, 2]], np.float32)
    assert dot64(a, b) == 5 + 12 + 1.5 - 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs_are_moved_and_sizes_kept(dtype: Any) -> None:
    import torch

    size = np.array([0.0, 1.5, 2.5, 1e-45, 3e38, np.inf, 0.0], dtype)
    sign = np.array([-1.0, -0.0, 0.0, -2.0, 5.0, -np.inf, 1.0], dtype)
    expected = np.copysign(size, sign)
    found = with_sign_of(size.copy(), sign)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    theirs = with_sign_of(torch.from_numpy(size.copy()), torch.from_numpy(sign)).numpy()
    np.testing.assert_array_equal(np.signbit(theirs), np.signbit(expected))


def test_a_sum_leaves_its_terms_alone() -> None:
    terms = [np.full(3, float(i)) for i in range(1, 5)]
    np.testing.assert_array_equal(sum_of(terms), np.full(3, 10.0))
    assert [term[0] for term in terms] == [1, 2, 3, 4]
    np.testing.assert_array_equal(sum_of(iter(terms[:1])), terms[0])


def test_masks_take_the_dtype_of_their_neighbour() -> None:
    import torch

    mask, like = np.array([True, False]), np.zeros(2, np.float32)
    assert as_mask(mask, like).dtype == np.float32
    assert as_mask(torch.from_numpy(mask), torch.from_numpy(like)).dtype == torch.float32
    np.testing.assert_array_equal(to_numpy(torch.from_numpy(like)), like)
