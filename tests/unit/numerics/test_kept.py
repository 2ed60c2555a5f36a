"""Selection from kept scores equals sorting them, and equals the streamed selection of tensors too large to keep."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.numerics import kept
from cuvee.numerics.block import Block
from cuvee.numerics.kept import KeptScores, keep_scores, of_ranks
from support.merging import scan_of

RNG = np.random.default_rng(4)
SCORES = {
    "distinct": np.abs(RNG.normal(0, 1, 300_000)).astype(np.float32),
    "few sizes": RNG.choice(np.float32([0, 0.25, 0.5, 3]), 300_000, p=[0.4, 0.3, 0.2, 0.1]),
    "all equal": np.full(70_000, 0.5, np.float32),
    "ascending": np.arange(200_000, dtype=np.float32),
    "one": np.float32([2.5]),
    "heavy tail": np.exp(RNG.normal(0, 6, 100_001)).astype(np.float32),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.1, 0.5, 0.99999, 1.0])
def test_exactly_so_many_of_the_largest_are_kept(name: str, share: float) -> None:
    scores = SCORES[name]
    k = int(share * scores.size)
    cut = KeptScores(scores).kth_largest(k)
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[:k]] = True
    np.testing.assert_array_equal(cut.keep(scores, 0), mask)
    streamed = scan_of(Block((scores,)), 10_000).kth_largest(lambda block: block.arrays, [k])[0]
    np.testing.assert_array_equal(streamed.keep(scores, 0), mask)


def test_what_is_no_number_lies_below_everything() -> None:
    scores = SCORES["distinct"].copy()
    scores[::7] = np.nan
    cut = KeptScores(scores).kth_largest(1000)
    chosen = cut.keep(scores, 0)
    assert chosen.sum() == 1000
    assert scores[chosen].min() >= np.sort(scores[~np.isnan(scores)])[-1000]
    assert KeptScores(scores).kth_largest(scores.size - 10).keep(scores, 0)[~np.isnan(scores)].all()


@pytest.mark.parametrize("name", SCORES)
def test_ranks_are_those_of_a_sort_kept_or_streamed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = SCORES[name]
    ranks = sorted({0, scores.size // 100, scores.size // 4, scores.size // 2, scores.size - 1})
    expected = np.sort(scores)[ranks]
    scan = scan_of(Block((scores,)), 10_000)
    assert of_ranks(scan, lambda block: block[0], ranks) == tuple(expected)
    # large tensors are streamed; the least of all is not a rank that a cut can name
    monkeypatch.setattr(kept, "AFFORDABLE", 0)
    assert of_ranks(scan, lambda block: block[0], ranks[1:]) == tuple(expected[1:])


def test_scores_are_those_of_each_block() -> None:
    whole = SCORES["ascending"]
    found = keep_scores(scan_of(Block((whole,)), 3000), lambda block: block[0] * 2)
    assert found is not None
    part = Block((np.zeros((4, 25), np.float32),), 600)
    np.testing.assert_array_equal(found.of(part), 2 * whole[600:700].reshape(4, 25))


def test_large_tensors_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "AFFORDABLE", 1000)
    assert keep_scores(scan_of(Block((SCORES["ascending"],)), 3000), lambda block: block[0]) is None
