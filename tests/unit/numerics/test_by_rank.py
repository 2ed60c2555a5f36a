"""Every element survives on its own, with the probability that its rank in its row gives it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cuvee.numerics.by_rank import draw_by_rank
from cuvee.numerics.random import derive_key

Array = np.ndarray[Any, Any]
REPEATS = 40_000


def survivals(row: list[float], low: float, high: float) -> Array:
    """Draws of one row, over and over, `[REPEATS, columns]`."""
    rows = np.tile(np.array(row, np.float32), (REPEATS, 1))
    return draw_by_rank(rows, low, high, derive_key(0, "row"), 0)


@pytest.mark.parametrize(("low", "high"), [(0.35, 0.65), (0.25, 0.75), (0.001, 0.003), (0.5, 0.5), (0.0, 1.0)])
def test_the_probability_is_linear_in_the_rank(low: float, high: float) -> None:
    kept = survivals([3.0, 0.0, 1.0, 5.0, 2.0, 4.0], low, high).mean(0)
    chance = low + (high - low) * np.array([3, 0, 1, 5, 2, 4]) / 5
    assert (abs(kept - chance) <= 5 * np.sqrt(chance * (1 - chance) / REPEATS)).all()


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    kept = survivals([1.0, 2.0, 1.0, 1.0, 0.0], 0.2, 0.8).mean(0)
    chance = 0.2 + 0.6 * np.array([2, 4, 2, 2, 0]) / 4
    assert (abs(kept - chance) <= 5 * np.sqrt(chance * (1 - chance) / REPEATS)).all()


def test_elements_of_a_row_survive_independently() -> None:
    masks = survivals([3.0, 0.0, 1.0, 1.0, 2.0, 4.0], 0.2, 0.8)
    correlation = np.corrcoef(masks.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / math.sqrt(REPEATS)
    chance = masks.mean(0)
    variance, expected = masks.sum(1).var(), float((chance * (1 - chance)).sum())
    assert abs(variance - expected) <= 5 * expected * math.sqrt(2 / REPEATS)


def test_long_rows_have_the_probability_of_each_rank() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 1013)).astype(np.float32)
    kept = draw_by_rank(abs(values), 0.3, 0.7, derive_key(0, "long"), 0)
    ranks = np.argsort(np.argsort(abs(values), axis=1), axis=1)
    for part in range(10):
        chosen = ranks * 10 // 1013 == part
        chance = float(0.3 + 0.4 * ranks[chosen].mean() / 1012)
        assert abs(kept[chosen].mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / chosen.sum())


def test_draws_do_not_depend_on_where_blocks_of_rows_begin() -> None:
    values = np.random.default_rng(1).random((30, 17), np.float32)
    whole = draw_by_rank(values, 0.3, 0.6, 7, 2**33 - 34)
    parts = [draw_by_rank(values[i : i + 10], 0.3, 0.6, 7, 2**33 - 34 + 17 * i) for i in (0, 10, 20)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("columns", [1, 2, 3, 700])
@pytest.mark.parametrize(("low", "high"), [(0.35, 0.65), (0.4, 0.4 + 1e-15), (0.5, 0.5), (1 / 256, 255 / 256)])
def test_torch_draws_the_same(columns: int, low: float, high: float) -> None:
    import torch

    values = np.random.default_rng(2).integers(0, 9, (20, columns)).astype(np.float32)
    theirs = draw_by_rank(torch.from_numpy(values), low, high, 2**60 + 5, 20 * columns)
    assert theirs.dtype == torch.bool
    np.testing.assert_array_equal(draw_by_rank(values, low, high, 2**60 + 5, 20 * columns), theirs.numpy())
