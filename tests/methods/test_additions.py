"""Methods and stages that mergekit does not have, worked out on paper, and what the papers promise of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cuvee.errors import MethodError
from cuvee.methods.geometric_median import balance, geometric_median, possible
from cuvee.methods.magmax import magmax
from cuvee.methods.norms import by_inverse, by_square, metagpt, nan
from cuvee.methods.registry import get_method
from cuvee.methods.stages import merger
from cuvee.methods.tall import consensus, enough_models
from cuvee.numerics.block import Block
from support.merging import scan_of


def block(*rows: Sequence[float]) -> Block:
    return Block(tuple(np.array(row, np.float32) for row in rows))


def assert_is(result: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(result, np.array(expected), rtol=3e-7, atol=1e-9)


def test_magmax_takes_the_largest_change_and_of_equals_the_positive_one() -> None:
    deltas = block([1, -3, 2, 0], [-2, 2, -2, 0])
    assert_is(magmax(deltas), [-2, -3, 2, 0])
    assert_is(magmax(deltas, lambda_=0.5), [-1, -1.5, 1, 0])
    assert_is(magmax(block(*deltas.arrays[::-1])), [-2, -3, 2, 0])


def test_consensus_keeps_what_matters_to_several() -> None:
    deltas = block([1, 4, 2, 0], [1, 0.5, -2, 0], [2, 0.5, 1, 3])
    # Sums 4, 5, 1, 3. Against 0.4 of the others' sum: 1 and 1 fall short of 1.2, 2 reaches 0.8; only 4 reaches 0.4 and
    # 0.5 misses 1.8; 2 reaches 0.4, 2 reaches 1.2, 1 reaches 0; 3 reaches 0, the others miss 1.2.
    assert_is(consensus(deltas, threshold=(0.4,) * 3, k=1, weight=(1,) * 3), [4, 5, 1, 3])
    assert_is(consensus(deltas, threshold=(0.4,) * 3, k=2, weight=(1,) * 3), [0, 0, 1, 0])
    assert_is(consensus(deltas, threshold=(0.4,) * 3, k=3, weight=(1,) * 3, lambda_=2.0), [0, 0, 2, 0])
    # With 0.3 the ones of the first column reach 0.9 as well.
    assert_is(consensus(deltas, threshold=(0.3,) * 3, k=3, weight=(1,) * 3), [4, 0, 1, 0])


def test_consensus_of_more_models_than_there_are_is_refused() -> None:
    enough_models(threshold=(0.4, 0.4), k=2)
    for k in (0, 3):
        with pytest.raises(MethodError, match="k cannot be more than there are models"):
            enough_models(threshold=(0.4, 0.4), k=k)


def test_metagpt_weighs_by_squared_norms() -> None:
    deltas = block([3, 4, 0], [0, 0, 10])  # norms 5 and 10: a fifth and four fifths
    shares = by_square(scan_of(deltas))
    assert shares == pytest.approx((0.2, 0.8), rel=1e-15)
    assert_is(metagpt(deltas, shares, lambda_=0.5), [0.3, 0.4, 4])


def test_nan_weighs_by_inverse_norms() -> None:
    deltas = block([3, 4, 0], [0, 0, 10], [0, 0, 0])  # a fifth and a tenth of three tenths; nothing to share
    shares = by_inverse(scan_of(deltas))
    assert shares == pytest.approx((2 / 3, 1 / 3, 0), rel=1e-15)
    assert_is(nan(deltas, shares), [2, 8 / 3, 10 / 3])


@pytest.mark.parametrize("prepare", [by_square, by_inverse])
def test_coefficients_hold_for_any_size_of_change_and_for_none(prepare: Any) -> None:
    assert prepare(scan_of(block([0, 0], [0, 0]))) == (0.5, 0.5)
    first, second = (prepare(scan_of(block([3 * s, 4 * s], [0, 10 * s]))) for s in (1, 1e-22))
    assert first == pytest.approx(second, rel=1e-6)


def test_median_of_a_triangle_is_where_its_corners_are_seen_at_equal_angles() -> None:
    corners = block([0, 0], [1, 0], [0.5, math.sqrt(3) / 2])  # equilateral: the median is the centre
    shares = balance(scan_of(corners), weight=(1, 1, 1), max_iter=100, tol=1e-12)
    assert_is(geometric_median(corners, shares, weight=(1, 1, 1)), [0.5, math.sqrt(3) / 6])
    # A corner with an angle of more than 120 degrees is the median itself.
    wide = block([0, 0], [10, 1], [-10, 1])
    shares = balance(scan_of(wide), weight=(1, 1, 1), max_iter=100, tol=1e-12)
    assert shares == (1, 0, 0)


def test_median_is_not_pulled_away_by_an_outlier() -> None:
    rng = np.random.default_rng(0)
    near = [rng.normal(0, 1, 1000) for _ in range(4)]
    at = []
    for far in (1e3, 1e6):
        models = block(*near, rng.normal(0, far, 1000))
        at.append(geometric_median(models, balance(scan_of(models), weight=(1,) * 5, max_iter=1000, tol=1e-15)))
    spread = np.linalg.norm(near[0] - np.mean(near, axis=0))
    assert max(np.linalg.norm(found - np.mean(near, axis=0)) for found in at) < spread


def test_median_of_two_is_the_mean_or_the_heavier_one() -> None:
    pair = block([0, 2], [4, 0])
    for weight, expected in [((1, 1), (0.5, 0.5)), ((1, 1.5), (0, 1)), ((2, 0), (1, 0))]:
        found = balance(scan_of(pair), weight=weight, max_iter=1000, tol=1e-12)
        assert found == pytest.approx(expected, abs=1e-9)
    with pytest.raises(MethodError, match="none is negative"):
        possible(weight=(1, -0.5))
    with pytest.raises(MethodError, match="none is negative"):
        possible(weight=(0, 0))


def test_matching_norms_gives_the_weighted_mean_of_the_norms() -> None:
    deltas = block([3, 4, 0, 0], [0, 0, 6, 8])  # norms 5 and 10
    chosen = {"weight": (3.0, -1.0), "normalize": False, "lambda_": 7.0, "int8_mask": False}
    merge = merger(
        get_method("task_arithmetic"), lambda: scan_of(deltas), (), chosen | {"match_norm": True, "lines": 0.5}
    )
    merged = merge(deltas)  # (9, 12, -6, -8) has norm 18.03; the mean norm is (3 * 5 + 1 * 10) / 4 = 6.25; half of that
    assert float(np.linalg.norm(merged)) == pytest.approx(3.125, rel=1e-6)
    assert merged[0] / merged[2] == pytest.approx(-1.5, rel=1e-6)


def test_nothing_is_scaled_where_nothing_was_merged() -> None:
    deltas = block([1, 2], [-1, -2])
    chosen = {"weight": (1.0, 1.0), "normalize": False, "lambda_": 1.0, "int8_mask": False, "match_norm": True}
    assert_is(merger(get_method("task_arithmetic"), lambda: scan_of(deltas), (), chosen)(deltas), [0, 0])
