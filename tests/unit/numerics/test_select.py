from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cuvee.numerics import select
from cuvee.numerics.select import KEEP_ALL, KEEP_NONE, Cut, select_kth_largest

Array = np.ndarray[Any, Any]


def mask_by_sorting(scores: Array, k: int) -> Array:
    """Exactly k entries, the largest, lowest index first among equals: a stable sort of the whole."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, kind="stable")[: max(k, 0)]] = True
    return mask


def run(function: Any, spans: Any) -> list[Any]:
    return [function(span) for span in spans]


class Passes:
    """A block map that counts how often the tensor is gone through."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, function: Any, spans: Any) -> list[Any]:
        self.count += 1
        return run(function, spans)


def cuts_of(columns: Sequence[Array], ks: Sequence[int], grain: int, block_map: Any = run) -> tuple[Cut, ...]:
    size = columns[0].size
    ranges = tuple((start, min(start + grain, size)) for start in range(0, size, grain))
    return select_kth_largest(lambda a, b: [column[a:b] for column in columns], ranges, ks, block_map)


def masks_of(cut: Cut, scores: Array, block: int) -> Array:
    """The kept entries, asked for block by block."""
    return np.concatenate([cut.keep(scores[i : i + block], i) for i in range(0, scores.size, block)])


def check(scores: Array, k: int, grain: int, block: int = 0) -> None:
    (cut,) = cuts_of([scores], [k], grain)
    np.testing.assert_array_equal(masks_of(cut, scores, block or grain), mask_by_sorting(scores, k))


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 300),
        elements=st.sampled_from([0.0, 1e-45, 0.25, 0.5, 0.5000001, 1.0, 3.0e38]) | st.floats(0, 2**20, width=32),
    ),
    st.floats(-0.1, 1.1),
    st.integers(1, 320),
    st.integers(1, 320),
)
@settings(max_examples=400, deadline=None)
def test_any_small_data(scores: Array, share: float, grain: int, block: int) -> None:
    check(scores, int(share * scores.size), grain, block)


RNG = np.random.default_rng(0)
SIZE = 300_001
ADVERSARIAL = {
    "normal": np.abs(RNG.normal(size=SIZE)).astype(np.float32),
    "all equal": np.full(SIZE, 0.5, np.float32),
    "all zero": np.zeros(SIZE, np.float32),
    "two values": (RNG.random(SIZE) < 0.3).astype(np.float32),
    "few values": RNG.choice(np.array([0, 1, 2, 3, 5, 8], np.float32), SIZE),
    "rising": np.arange(SIZE, dtype=np.float32),
    "falling": np.arange(SIZE, dtype=np.float32)[::-1].copy(),
    "all large ones in one place": np.concatenate([np.ones(SIZE - 999), np.full(999, 7.0)]).astype(np.float32),
    "heavy tail": np.exp2(RNG.normal(0, 20, SIZE)).astype(np.float32),
    "bfloat16 magnitudes": (np.abs(RNG.normal(size=SIZE)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(
        np.float32
    ),
    "subnormal": (RNG.integers(0, 50, SIZE) * 1e-45).astype(np.float32),
    "with infinities": np.where(RNG.random(SIZE) < 0.01, np.inf, RNG.random(SIZE)).astype(np.float32),
    "float64 apart by last bits": 1.0 + RNG.integers(0, 1000, SIZE) * 2.0**-52,
}
SHARES = (1 / SIZE, 0.001, 0.2, 0.5, 0.77, 0.999, 1 - 1 / SIZE, 1.0)


@pytest.mark.parametrize("data", ADVERSARIAL)
def test_large_data_of_every_kind(data: str) -> None:
    for share in SHARES:
        check(ADVERSARIAL[data], round(share * SIZE), 1 << 16)


@pytest.mark.parametrize("data", ADVERSARIAL)
def test_brackets_too_full_to_collect_are_narrowed(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_CAPACITY", 1)  # 256 values a block, the least
    for share in (0.001, 0.4, 0.999):
        check(ADVERSARIAL[data][:40_000], round(share * 40_000), 4096)


@pytest.mark.parametrize("data", ADVERSARIAL)
def test_samples_that_mislead_cost_passes_not_exactness(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_SAMPLE_CHUNKS", 2)
    monkeypatch.setattr(select, "_SAMPLE_LENGTH", 3)
    monkeypatch.setattr(select, "_CAPACITY", 1)
    for share in (0.001, 0.4, 0.999):
        check(ADVERSARIAL[data][:40_000], round(share * 40_000), 4096)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (5.0, 6.0), (0.69, 0.70)])
def test_a_wrong_bracket_is_left_in_the_right_direction(
    low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mislead(scores: Any, size: int, searches: Any, align: int, grain: int) -> None:
        for search in searches:
            search.low, search.high = low, high

    monkeypatch.setattr(select, "_bracket_by_sample", mislead)
    scores = np.abs(RNG.normal(size=50_000)).astype(np.float32)
    for k in (1, 500, 25_000, 49_999):
        check(scores, k, 8192)


def test_an_ordinary_tensor_takes_one_pass_after_the_sample() -> None:
    passes = Passes()
    (cut,) = cuts_of([ADVERSARIAL["normal"]], [60_000], 1 << 16, passes)
    assert passes.count == 1
    assert cut.value == np.sort(ADVERSARIAL["normal"])[-60_000]


def test_several_searches_share_their_passes_and_mind_their_own_columns() -> None:
    columns = [ADVERSARIAL[name] for name in ("normal", "few values", "rising", "all zero", "two values")]
    ks = [1000, 150_000, SIZE, 0, 7]
    cuts = cuts_of(columns, ks, 1 << 16)
    assert cuts[2] == KEEP_ALL
    assert cuts[3] == KEEP_NONE
    for column, k, cut in zip(columns, ks, cuts, strict=True):
        np.testing.assert_array_equal(masks_of(cut, column, 5001), mask_by_sorting(column, k))


def test_the_cut_does_not_depend_on_the_partition() -> None:
    scores = ADVERSARIAL["bfloat16 magnitudes"]
    cuts = {cuts_of([scores], [77_777], grain)[0] for grain in (4096, 10_007, 1 << 17, SIZE)}
    assert len(cuts) == 1


def test_ranges_of_whole_rows_are_asked_for_whole_rows() -> None:
    row, rows = 700, 400
    scores = np.abs(RNG.normal(size=row * rows)).astype(np.float32)
    asked: list[tuple[int, int]] = []

    def score(start: int, stop: int) -> list[Array]:
        asked.append((start, stop))
        return [scores[start:stop].reshape(-1, row)]

    ranges = tuple((start, min(start + 50 * row, scores.size)) for start in range(0, scores.size, 50 * row))
    (cut,) = select_kth_largest(score, ranges, [12_345], run, row)
    assert all(start % row == 0 and stop % row == 0 for start, stop in asked)
    kept = [cut.keep(scores[i : i + 7 * row].reshape(-1, row), i) for i in range(0, scores.size, 7 * row)]
    assert all(part.shape[1] == row for part in kept)
    np.testing.assert_array_equal(np.concatenate(kept).ravel(), mask_by_sorting(scores, 12_345))


def test_what_is_not_a_number_is_below_everything() -> None:
    scores = ADVERSARIAL["normal"].copy()
    scores[::3] = np.nan
    (cut,) = cuts_of([scores], [100], 1 << 16)
    assert masks_of(cut, scores, 1 << 16).sum() == 100
    numbers = int(np.isfinite(scores).sum())
    (cut,) = cuts_of([scores], [numbers + 5], 1 << 16)
    assert cut == KEEP_ALL


def test_torch_keeps_the_same() -> None:
    import torch

    scores = ADVERSARIAL["few values"]
    ranges = ((0, 150_000), (150_000, SIZE))
    tensor = torch.from_numpy(scores)
    (cut,) = select_kth_largest(lambda a, b: [tensor[a:b]], ranges, [99_999], run)
    assert cut == cuts_of([scores], [99_999], 1 << 16)[0]
    for start, stop in ((0, 100_000), (100_000, 200_000), (200_000, SIZE)):
        np.testing.assert_array_equal(cut.keep(tensor[start:stop], start).numpy(), cut.keep(scores[start:stop], start))


def test_cuts_before_in_and_after_a_block() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    assert Cut(2.0, 100).keep(scores, 0).tolist() == [False, True, True, True]
    assert Cut(2.0, 11).keep(scores, 10).tolist() == [False, True, False, True]
    assert Cut(2.0, 9).keep(scores, 10).tolist() == [False, False, False, True]
    assert Cut(2.0, 11).keep(scores.reshape(2, 2), 10).tolist() == [[False, True], [False, True]]
    assert KEEP_ALL.keep(scores, 0).all()
    assert not KEEP_NONE.keep(scores, 0).any()
    assert math.isinf(KEEP_NONE.value)


def test_an_empty_tensor_keeps_all_of_nothing() -> None:
    assert select_kth_largest(lambda a, b: [np.empty(0)], (), [1], run) == (KEEP_ALL,)


def test_a_sample_of_coarse_grain_starts_at_grains_and_is_spread_over_them() -> None:
    """Rows of very different size, 10 to a grain: two consecutive thousand values would speak for a few rows only."""
    sizes = np.exp(RNG.normal(size=4000)).astype(np.float32)
    scores = (sizes[:, None] * np.abs(RNG.normal(size=(4000, 50))).astype(np.float32)).reshape(-1)
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> list[Array]:
        asked.append((start, stop))
        return [scores[start:stop]]

    ranges = [(i, min(i + 20_000, scores.size)) for i in range(0, scores.size, 20_000)]
    (cut,) = select_kth_largest(read, ranges, [60_000], lambda f, spans: [f(s) for s in spans], grain=5000)
    assert cut.value == np.sort(scores)[-60_000]
    samples = [span for span in asked if span not in ranges]
    assert len(samples) == 16
    assert all(start % 5000 == 0 and stop - start == 5000 for start, stop in samples)
    assert len(asked) - len(samples) == len(ranges) + 1  # one pass, and the block of the cut again
