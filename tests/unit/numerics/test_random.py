from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.numerics.random import derive_key, draw_below, hashed, uniform_bytes

Array = np.ndarray[Any, Any]
M32 = 0xFFFFFFFF


def like(size: int) -> Array:
    return np.zeros(size, np.float32)


def hash_by_hand(index: int, key: int) -> int:
    """The keyed hash in Python's own integers, which never overflow."""
    x = (index & M32) ^ (key & M32) ^ ((index >> 32) * 0x9E3779B9 & M32)
    x = (x ^ x >> 16) * 0x7FEB352D & M32
    x ^= key >> 32
    x = (x ^ x >> 15) * 0x846CA68B & M32
    return x ^ x >> 16


def byte_by_hand(position: int, key: int) -> int:
    """The bits of one element: the lowest of the hash that it shares with its neighbours for the first of them."""
    return hash_by_hand(position // 4, key) >> 8 * (position % 4) & 0xFF


def sixteen_bits(count: int, *parts: int | str) -> Array:
    """The draws of two neighbours as one number: halves of a hash."""
    return uniform_bytes(derive_key(*parts), 0, like(2 * count)).view("<u2")


KEYS = st.integers(0, 2**64 - 1)
STARTS = st.one_of(
    st.integers(1, 1000),
    st.integers(2**32 - 40, 2**32 + 40),
    st.integers(2**33 - 40, 2**33 + 40),
    st.integers(2**34 - 40, 2**34 + 40),
    st.integers(2**40, 2**40 + 9),
)


@given(KEYS, STARTS, st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_bytes_are_those_of_the_hash_written_out(key: int, start: int, size: int) -> None:
    expected = [byte_by_hand(position, key) for position in range(start, start + size)]
    assert uniform_bytes(key, start, like(size)).tolist() == expected


@given(KEYS, st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
def test_hashed_is_the_hash_written_out(key: int, index: list[int]) -> None:
    assert hashed(np.array(index, np.int64), key).tolist() == [hash_by_hand(i, key) for i in index]


@given(KEYS, STARTS, st.integers(2, 200), st.integers(1, 200), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_draws_do_not_depend_on_where_blocks_begin(key: int, start: int, size: int, cut: int, share: float) -> None:
    cut = min(cut, size - 1)
    whole = draw_below(share, key, start, like(size))
    first, second = draw_below(share, key, start, like(cut)), draw_below(share, key, start + cut, like(size - cut))
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))


@pytest.mark.parametrize("start", [0, 1, 12_345, 2**32 - 1000, 2**33 - 1001, 2**33 + 1])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 0.5, 1 - 1e-7, 1.0])
def test_torch_draws_the_same(start: int, share: float) -> None:
    import torch

    key = derive_key(3, "model.layers.0.weight")
    ours = draw_below(share, key, start, like(2001))
    theirs = draw_below(share, key, start, torch.zeros(2001))
    assert theirs.dtype == torch.bool
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("start", [0, 1, 7, 2**33, 2**34 + 1])
def test_no_elements_take_no_draws(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arange = np.arange

    def bounded(begin: int, end: int, **more: Any) -> Array:
        assert end - begin < 1000, "draws were made for elements that are not there"
        return arange(begin, end, **more)

    monkeypatch.setattr(np, "arange", bounded)
    assert draw_below(0.5, 1, start, like(0)).shape == (0,)


def test_draws_keep_the_shape() -> None:
    flat = draw_below(0.4, 9, 7, like(60))
    np.testing.assert_array_equal(draw_below(0.4, 9, 7, like(60).reshape(3, 20)), flat.reshape(3, 20))


def test_sixteen_bits_are_uniform() -> None:
    """Chi-square over the 65536 values: its spread around the degrees of freedom is known."""
    draws = sixteen_bits(1 << 22, 0, "a")
    counts = np.bincount(draws, minlength=1 << 16)
    expected = draws.size / (1 << 16)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = (1 << 16) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_every_bit_is_a_fair_and_independent_coin() -> None:
    draws = sixteen_bits(1 << 20, 0, "b").astype(np.uint32)
    bits = np.stack([(draws >> bit) & 1 for bit in range(16)]).astype(np.float64)
    bound = 5 / math.sqrt(draws.size)
    assert np.abs(bits.mean(1) - 0.5).max() < bound / 2
    assert np.abs(np.corrcoef(bits) - np.eye(16)).max() < bound


@pytest.mark.parametrize("parts", [4, 2])
def test_parts_of_one_hash_are_independent(parts: int) -> None:
    whole = uniform_bytes(derive_key(0, "c"), 0, like(1 << 20))
    draws = whole.view(f"<u{4 // parts}").astype(np.float64).reshape(-1, parts)
    correlations = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(len(draws))


@pytest.mark.parametrize("step", [0.0, 0.25, 0.5, 0.75])
def test_probabilities_between_two_steps_are_exact(step: float) -> None:
    """Between two eight-bit steps further bits decide: draws at the boundary itself fall in the right share."""
    key, size, bound = derive_key(1, "edge"), 1 << 20, 117
    draws = uniform_bytes(key, 0, like(size))
    below = draw_below((bound + step) / 2**8, key, 0, like(size))
    assert below[draws < bound].all()
    assert not below[draws > bound].any()
    edge = below[draws == bound]
    assert edge.size > 3000
    assert abs(edge.mean() - step) <= 5 * math.sqrt(step * (1 - step) / edge.size)


def test_more_probability_keeps_all_that_less_kept() -> None:
    key, kept = derive_key(5, "monotone"), np.zeros(100_000, bool)
    for share in (0.1, 0.1 + 2**-20, 0.3, 0.300001, 0.9):
        now = draw_below(share, key, 0, like(kept.size))
        assert (now | ~kept).all()
        kept = now


@pytest.mark.parametrize(("share", "mean"), [(-1.0, 0), (0.0, 0), (1.0, 1), (2.0, 1)])
def test_certain_draws(share: float, mean: float) -> None:
    assert draw_below(share, 1, 3, like(4001)).mean() == mean


def test_tiny_probabilities_are_not_lost() -> None:
    """2^-18 is a thousandth of the smallest eight-bit step."""
    kept = draw_below(2.0**-18, derive_key(2, "tiny"), 0, like(1 << 24)).sum()
    assert abs(kept - 64) < 5 * 8


def test_keys_depend_on_every_part_and_its_place() -> None:
    every: list[tuple[int | str, ...]] = [(0, "a"), (1, "a"), (0, "b"), ("a", 0), ("0a",), (0, "a", 0), (0, "a0")]
    keys = {derive_key(*parts) for parts in every}
    assert len(keys) == 7
    assert all(0 <= key < 2**64 for key in keys)


def test_keys_stay_what_they_are() -> None:
    """A later version must draw the same masks for the same seed."""
    from hashlib import blake2b

    expected = int.from_bytes(blake2b(b"42\x1fmodel.norm.weight", digest_size=8).digest(), "little")
    assert derive_key(42, "model.norm.weight") == expected


def test_keys_differ_in_their_draws() -> None:
    first, second = (sixteen_bits(1 << 18, seed, "w").astype(float) for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(first.size)
