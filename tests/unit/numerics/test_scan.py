from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cuvee.numerics.block import Block
from support.merging import scan_of

RNG = np.random.default_rng(3)
ARRAYS = tuple((RNG.normal(0, 1, (250, 401)) * np.exp2(RNG.integers(-9, 9))).astype(np.float32) for _ in range(3))
GRAINS = (1000, 1 << 15, 250 * 401)


@pytest.mark.parametrize("grain", GRAINS)
def test_gram_holds_all_dot_products(grain: int) -> None:
    gram = scan_of(Block(ARRAYS), grain).gram()
    wide = [array.astype(np.float64).ravel() for array in ARRAYS]
    expected = np.array([[math.fsum(a * b) for b in wide] for a in wide])
    lengths = np.sqrt(np.diag(expected))  # runs of float32 are multiplied in float32
    assert np.all(abs(gram - expected) <= 1e-8 * np.outer(lengths, lengths))
    np.testing.assert_array_equal(gram, gram.T)


def test_gram_of_float64_is_of_float64() -> None:
    wide = [array.astype(np.float64).ravel() for array in ARRAYS]
    expected = np.array([[math.fsum(a * b) for b in wide] for a in wide])
    found = scan_of(Block(tuple(wide)), 1 << 15).gram()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_gram_does_not_round_to_float32_on_the_way() -> None:
    # 2^24 and then ones: in float32 no single one would be seen.
    array = np.concatenate([[4096.0], np.ones(1000)]).astype(np.float32)
    assert scan_of(Block((array,)), 100).gram()[0, 0] == 2**24 + 1000


@pytest.mark.parametrize("grain", GRAINS)
def test_sum_is_that_of_each_array(grain: int) -> None:
    found = scan_of(Block(ARRAYS), grain).sum(lambda block: [block[0], abs(block[1]), block[2] * 0 + 1])
    wide = [array.astype(np.float64).ravel() for array in ARRAYS]
    expected = [math.fsum(wide[0]), math.fsum(np.abs(wide[1])), float(ARRAYS[0].size)]
    sizes = [math.fsum(np.abs(wide[0])), expected[1], expected[2]]  # runs of float32 are summed in float32
    assert np.all(np.abs(found - expected) <= 1e-7 * np.array(sizes))
    assert found[2] == expected[2]
    assert found.dtype == np.float64


def test_sum_does_not_round_to_float32_on_the_way() -> None:
    array = np.concatenate([[2.0**24], np.ones(1000)]).astype(np.float32)
    assert scan_of(Block((array,)), 100).sum(lambda block: block.arrays)[0] == 2**24 + 1000


def test_partial_sums_are_added_in_order_whoever_is_first() -> None:
    scan = scan_of(Block(ARRAYS), 777)
    backwards = replace(scan, map=lambda function, spans: [function(s) for s in list(spans)[::-1]][::-1])
    assert scan.sum(lambda block: block.arrays).tobytes() == backwards.sum(lambda block: block.arrays).tobytes()
    assert scan.gram().tobytes() == backwards.gram().tobytes()


def test_each_sees_every_element_once_in_order() -> None:
    seen = scan_of(Block(ARRAYS), 999).each(lambda block: (block.start, block[0]))
    assert [start for start, _ in seen] == list(range(0, ARRAYS[0].size, 999))
    np.testing.assert_array_equal(np.concatenate([part for _, part in seen]), ARRAYS[0].ravel())


def test_size_and_kth_largest() -> None:
    scan = scan_of(Block(ARRAYS), 10_000)
    assert scan.size == ARRAYS[0].size
    cuts = scan.kth_largest(lambda block: [abs(array) for array in block], [10, 50_000, scan.size])
    for array, k, cut in zip(ARRAYS, [10, 50_000, scan.size], cuts, strict=True):
        assert cut.keep(np.abs(array), 0).sum() == k
        if k < scan.size:
            assert cut.value == np.sort(np.abs(array).ravel())[-k]


def test_torch_scans_give_the_same_numbers() -> None:
    import torch

    ours, theirs = scan_of(Block(ARRAYS), 5000), scan_of(Block(tuple(map(torch.from_numpy, ARRAYS))), 5000)
    lengths = np.sqrt(np.diag(ours.gram()))
    assert np.all(abs(theirs.gram() - ours.gram()) <= 1e-8 * np.outer(lengths, lengths))
    sizes = [float(np.abs(array).sum()) for array in ARRAYS]
    assert np.all(np.abs(theirs.sum(list) - ours.sum(list)) <= 1e-7 * np.array(sizes))
