"""Counter-based randomness: a hash of key and element index; any block, thread, device or restart draws the same.

The mixer is lowbias32 (Chris Wellons' search for low-bias 32-bit hashes, public domain, 2018) applied to the index
under a 64-bit key: the key's lower half enters before the first multiplication, the upper half between two rounds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from cuvee.numerics.arrays import device_of, namespace
from cuvee.numerics.block import Array

_FIRST, _SECOND, _MASK = 0x7FEB352D, 0x846CA68B, 0xFFFFFFFF
_HIGH = 0x9E3779B9  # spreads the index's upper half, for tensors of more than 2^33 elements


@lru_cache(1 << 10, typed=True)
def derive_key(*parts: int | str) -> int:
    """64 bits that depend on every part: (seed, tensor name), then (key, model position)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def draw_below(probability: float, key: int, start: int, like: Array) -> Array:
    """A boolean array of `like`'s shape, each element true with `probability`, for flat indices from `start` on.

    Eight bits decide, so that one hash serves four neighbours; where they fall on the boundary itself, 32 further bits
    do: the probability is exact to 2^-40.
    """
    xp = namespace(like)
    if probability >= 1.0:
        return xp.ones(like.shape, dtype=xp.bool, **device_of(like))
    scaled = max(probability, 0.0) * 2.0**8
    bound = int(scaled)
    draws = uniform_bytes(key, start, like)
    below = draws < (np.uint8(bound) if isinstance(draws, np.ndarray) else bound)
    if rest := scaled - bound:
        (edge,) = xp.nonzero(draws == bound)
        below[edge] = hashed(edge + start, derive_key(key, "edge")) < round(rest * 2.0**32)
    return below.reshape(like.shape)


def uniform_bytes(key: int, start: int, like: Array) -> Array:
    """Eight uniform bits for each element of `like`, flat: uint8 in NumPy, int64 in torch."""
    size = math.prod(like.shape)
    first, last = start // 4, -(-(start + size) // 4) if size else start // 4  # a hash serves four elements
    xp = namespace(like)
    if isinstance(like, np.ndarray):
        draws = _hashed_32(first, last - first, key).astype("<u4", copy=False).view(np.uint8)
    else:
        whole = hashed(xp.arange(first, last, dtype=xp.int64, **device_of(like)), key)
        draws = xp.reshape(xp.stack([(whole >> shift) & 0xFF for shift in range(0, 32, 8)], axis=1), (-1,))
    return draws[start % 4 : start % 4 + size]


def hashed(index: Array, key: int) -> Array:
    """32 bits for each index (int64, not negative), as numbers in [0, 2^32): uint32 in NumPy, int64 in torch.

    Products stay below 2^63 where it matters: the low 32 bits of a wrapping product are right whatever the sign.
    """
    if isinstance(index, np.ndarray):
        low = index.astype(np.uint32)  # the lower half
        if index.size and int(index.max()) > _MASK:
            low ^= (index >> 32).astype(np.uint32) * np.uint32(_HIGH)
        return _mixed(low, key)
    x = (index & _MASK) ^ (key & _MASK) ^ (((index >> 32) * _HIGH) & _MASK)
    x = ((x ^ (x >> 16)) * _FIRST) & _MASK
    x = x ^ (key >> 32)
    x = ((x ^ (x >> 15)) * _SECOND) & _MASK
    return x ^ (x >> 16)


def _hashed_32(start: int, count: int, key: int) -> np.ndarray[Any, Any]:
    """`hashed(start ... start + count)`, without the indices in 64 bits."""
    if count and start >> 32 != (start + count - 1) >> 32:  # the index's upper half changes on the way
        split = 2**32 - (start & _MASK)
        return np.concatenate([_hashed_32(start, split, key), _hashed_32(start + split, count - split, key)])
    low = np.arange(start & _MASK, (start & _MASK) + count, dtype=np.uint32)
    return _mixed(low, key ^ (start >> 32) * _HIGH & _MASK)


def _mixed(x: np.ndarray[Any, Any], key: int) -> np.ndarray[Any, Any]:
    """The hash of uint32 numbers, in their place."""
    shifted = np.empty_like(x)
    x ^= np.uint32(key & _MASK)
    np.right_shift(x, np.uint32(16), out=shifted)
    x ^= shifted
    x *= np.uint32(_FIRST)
    x ^= np.uint32(key >> 32)
    np.right_shift(x, np.uint32(15), out=shifted)
    x ^= shifted
    x *= np.uint32(_SECOND)
    np.right_shift(x, np.uint32(16), out=shifted)
    x ^= shifted
    return x
