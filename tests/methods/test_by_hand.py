"""One example of each method worked out on paper; the methods are called as plain functions on blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cuvee.methods.arcee_fusion import arcee_fusion, weigh
from cuvee.methods.dare import dare_linear, dare_ties
from cuvee.methods.linear import linear
from cuvee.methods.passthrough import passthrough
from cuvee.methods.slerp import arc, slerp
from cuvee.methods.sparsify import drop, trim
from cuvee.methods.sphere import karcher, mean_direction, multislerp, riemannian_mean
from cuvee.methods.task_arithmetic import task_arithmetic
from cuvee.methods.ties import ties
from cuvee.numerics.block import Block
from cuvee.numerics.random import derive_key, draw_below
from support.merging import scan_of


def block(*rows: Sequence[float], key: int = 0) -> Block:
    return Block(tuple(np.array(row, np.float32) for row in rows), 0, key)


def assert_is(result: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(result, np.array(expected), rtol=3e-7, atol=0)


def test_linear() -> None:
    models = block([1, 2, -4, 0], [5, -2, 0, 8])
    # 1 * 1 + 3 * 5 = 16, 2 - 6 = -4, -4 + 0 = -4, 0 + 24 = 24; a quarter of each when normalised
    assert_is(linear(models, weight=(1, 3), normalize=False), [16, -4, -4, 24])
    assert_is(linear(models, weight=(1, 3)), [4, -1, -1, 6])


def test_linear_with_weights_that_cancel_is_not_divided() -> None:
    assert_is(linear(block([1, 2, 3, 4], [4, 4, 4, 4]), weight=(1, -1)), [-3, -2, -1, 0])


def test_passthrough() -> None:
    tensor = block([1.5, -2, 0, 8])
    assert passthrough(tensor) is tensor[0]
    assert_is(passthrough(tensor, scale=(0.5,)), [0.75, -1, 0, 4])
    assert_is(passthrough(tensor, scale=(0.0,)), [0, 0, 0, 0])


def test_slerp_of_a_right_angle() -> None:
    models = block([1, 0, 0, 0], [0, 2, 0, 0])
    # The angle is 90 degrees: at a third, sin 60 of the first and sin 30 of the second, in their own lengths.
    coefficients = arc(scan_of(models), t=1 / 3)
    assert_is(slerp(models, coefficients, t=1 / 3), [math.sqrt(3) / 2, 1, 0, 0])


def test_slerp_of_sixty_degrees() -> None:
    models = block([2, 0, 0, 0], [1, math.sqrt(3), 0, 0])
    # Halfway between vectors of length 2 that are 60 degrees apart lies one of length 2 at 30 degrees.
    assert_is(slerp(models, arc(scan_of(models), t=0.5), t=0.5), [math.sqrt(3), 1, 0, 0])


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_of_equal_opposed_and_zero_vectors_is_linear(t: float) -> None:
    equal, opposed = block([1, -2, 3, 4], [1, -2, 3, 4]), block([1, -2, 3, 4], [-1, 2, -3, -4])
    assert_is(slerp(equal, arc(scan_of(equal), t=t), t=t), [1, -2, 3, 4])
    factor = 1 - 2 * t  # (1 - t) v - t v
    assert_is(slerp(opposed, arc(scan_of(opposed), t=t), t=t), [factor, -2 * factor, 3 * factor, 4 * factor])
    # A zero vector has no direction: its cosine is taken as 0, a right angle.
    zero = block([0, 0, 0, 0], [1, -2, 3, 4])
    share = math.sin(t * math.pi / 2)
    assert_is(slerp(zero, arc(scan_of(zero), t=t), t=t), [share, -2 * share, 3 * share, 4 * share])


def test_multislerp_of_an_opposed_pair_is_its_weighted_mean() -> None:
    # As mergekit does: 2 v / 4 + 2 * -3 v / 4 = -v; not normalised, 2 v - 6 v.
    pair = block([0.1, -0.2, 0.3, 0.4], [-0.3, 0.6, -0.9, -1.2])
    whole = mean_direction(scan_of(pair), weight=(2.0, 2.0), normalize_weights=True, eps=1e-8)
    assert_is(multislerp(pair, whole, weight=(2.0, 2.0)), [-0.1, 0.2, -0.3, -0.4])
    summed = mean_direction(scan_of(pair), weight=(2.0, 2.0), normalize_weights=False, eps=1e-8)
    assert_is(multislerp(pair, summed, weight=(2.0, 2.0)), [-0.4, 0.8, -1.2, -1.6])


@pytest.mark.parametrize("length", [1, 4, 5000])
def test_karcher_of_an_opposed_pair_is_not_nothing(length: int) -> None:
    # Every direction at a right angle is as good; mergekit keeps the first one, and the mean length of 1 and 3.
    vector = np.random.default_rng(length).normal(size=length).astype(np.float32)
    pair = Block((vector, np.float32(-3) * vector), 0, 0)
    np.testing.assert_allclose(karcher(pair, riemannian_mean(scan_of(pair), max_iter=10, tol=1e-5)), 2 * vector, 1e-6)


def test_karcher_of_a_pair_that_is_nearly_opposed_lies_between() -> None:
    pair = block([1, 0.002, 0, 0], [-1, 0.002, 0, 0])
    mean = karcher(pair, riemannian_mean(scan_of(pair), max_iter=10, tol=1e-5))
    np.testing.assert_allclose(mean, [0, math.hypot(1, 0.002), 0, 0], atol=1e-6)


def test_arcee_fusion_takes_its_quantiles_where_mergekit_does() -> None:
    # One row, so that importance goes by size. Of six sizes those at int(5 / 4) = 1, int(5 / 2) = 2 and int(15 / 4) = 3
    # are 2, 3 and 4: what reaches 3 + 1.5 * (4 - 2) = 6 stays.
    base, other = block([0, 0, 0, 0, 0, 0], [7, 1, 4, 3, 2, 5])
    models = Block((base[None], other[None]), 0, 0)
    assert_is(arcee_fusion(models, weigh(scan_of(models, align=6)))[0], [7, 0, 0, 0, 0, 0])


def test_task_arithmetic() -> None:
    deltas = block([1, -2, 0, 4], [3, 2, -1, 0])
    # 0.5 * 1 + 2 * 3 = 6.5, -1 + 4 = 3, 0 - 2 = -2, 2 + 0 = 2; twice that; or that over 2.5
    assert_is(task_arithmetic(deltas, weight=(0.5, 2), lambda_=2.0), [13, 6, -4, 4])
    assert_is(task_arithmetic(deltas, weight=(0.5, 2), normalize=True), [2.6, 1.2, -0.8, 0.8])


TIES = block([4, -1, 2, 0, -3], [1, 2, -2, 0, -1])
# Three of five stay: 4, 2, -3 of the first; 2, -2 and the first of the two ones of the second.
#   u1 =  4  0  2  0 -3      weight 1
#   u2 =  2  4 -4  0  0      weight 2
#   sum   6  4 -2  0 -3
#   that agree: 4+2, 4, -4, none, -3; their weights 3, 2, 2, none, 1


def test_ties() -> None:
    thin = trim(scan_of(TIES), density=(0.6, 0.6), rescale=False)
    kept = [[4, 0, 2, 0, -3], [1, 2, -2, 0, 0]]
    np.testing.assert_array_equal(thin(TIES), kept)
    density = (0.6, 0.6)
    assert_is(ties(TIES, thin, weight=(1, 2), density=density, normalize=False), [6, 4, -4, 0, -3])
    assert_is(ties(TIES, thin, weight=(1, 2), density=density), [2, 2, -2, 0, -3])
    assert_is(ties(TIES, thin, weight=(1, 2), density=density, lambda_=-0.5), [-1, -1, 1, 0, 1.5])


def test_ties_restores_the_norm_where_asked() -> None:
    # |d1| sums to 10, 9 of it stay; |d2| to 6, 5 of it stay.
    thin = trim(scan_of(TIES), density=(0.6, 0.6), rescale=True)
    first, second = thin(TIES)
    assert_is(first, [40 / 9, 0, 20 / 9, 0, -30 / 9])
    assert_is(second, [1.2, 2.4, -2.4, 0, 0])


def test_ties_counts_a_tied_vote_as_positive() -> None:
    deltas = block([1, -3, 0, 2], [-1, 3, 0, 2])
    thin = trim(scan_of(deltas), density=(1.0, 1.0), rescale=False)
    assert_is(ties(deltas, thin, weight=(1, 1)), [1, 3, 0, 2])
    assert_is(ties(deltas, thin, weight=(0.3, 0.3), normalize=False), [0.3, 0.9, 0, 1.2])


def test_ties_with_weights_that_cancel_is_not_divided() -> None:
    # u1 = 2 * 3 = 6 and u2 = -2 * -1 = 2 agree; their weights sum to 0, so 8 stays undivided. Then 2 * 1 - 2 * 1 = 0:
    # a tie, in which 2 * 1 wins over its own weight.
    deltas = block([3, 1, 0, 3], [-1, 1, 0, 0])
    thin = trim(scan_of(deltas), density=(1.0, 1.0), rescale=False)
    assert_is(ties(deltas, thin, weight=(2, -2)), [8, 1, 0, 3])


def test_ties_counts_hundreds_of_agreeing_models() -> None:
    deltas = block(*[[1, -2, 0, 4]] * 300)
    thin = trim(scan_of(deltas), density=(1.0,) * 300, rescale=False)
    assert_is(ties(deltas, thin, weight=(1.0,) * 300), [1, -2, 0, 4])


def key_of_mask(wanted: list[int], position: int, also: tuple[list[int], int] | None = None) -> int:
    """A tensor's key whose random masks at density 1/2 are the wanted ones."""
    for key in range(1 << 14):
        checks = [(wanted, position), *([also] if also else [])]
        if all((draw_below(0.5, derive_key(key, i), 0, np.zeros(4)) == np.array(mask)).all() for mask, i in checks):
            return key
    raise AssertionError("no key gives these masks")


def test_dare_linear() -> None:
    deltas = block([1, -2, 3, 4], key=key_of_mask([1, 0, 1, 0], 0))
    thin = drop(scan_of(deltas), density=(0.5,), rescale=True)
    # 4 of the norm of 10 stays, so what stays grows by 2.5; then weight 2.
    assert_is(dare_linear(deltas, thin, weight=(2,), density=(0.5,)), [5, 0, 15, 0])
    plain = drop(scan_of(deltas), density=(0.5,), rescale=False)
    assert_is(dare_linear(deltas, plain, weight=(2,), density=(0.5,), lambda_=0.5), [1, 0, 3, 0])


def test_dare_ties() -> None:
    key = key_of_mask([1, 0, 1, 0], 0, also=([1, 1, 0, 0], 1))
    deltas = block([1, -2, 3, 4], [-4, 2, 3, 1], key=key)
    thin = drop(scan_of(deltas), density=(0.5, 0.5), rescale=False)
    # Kept: 1 0 3 0 and -4 2 0 0; the sums -3 2 3 0 elect -4, 2, 3 and nothing.
    assert_is(dare_ties(deltas, thin, weight=(1, 1), density=(0.5, 0.5), rescale=False), [-4, 2, 3, 0])
    # Norms 10 of 4 and 10 of 6 left: 2.5 0 7.5 0 and -20/3 10/3 0 0.
    thin = drop(scan_of(deltas), density=(0.5, 0.5), rescale=True)
    assert_is(dare_ties(deltas, thin, weight=(1, 1), density=(0.5, 0.5)), [-20 / 3, 10 / 3, 7.5, 0])


def test_a_delta_that_was_dropped_whole_stays_nothing() -> None:
    deltas = block([1, -2, 3, 4])
    thin = drop(scan_of(deltas), density=(0.0,), rescale=True)
    assert_is(dare_linear(deltas, thin, weight=(1,), density=(0.0,)), [0, 0, 0, 0])
