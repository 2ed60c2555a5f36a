"""Counter-based randomness: a hash of (key, element index), so that any block, thread, device or restart draws the same.

The mixer is lowbias32 (Chris Wellons' search for low-bias 32-bit hashes, public domain, 2018) applied to the index
under a 64-bit key: the key's lower half enters before the first multiplication, the upper half between two rounds.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

from cuvee.numerics.arrays import namespace
from cuvee.numerics.block import Array

_FIRST, _SECOND, _MASK = 0x7FEB352D, 0x846CA68B, 0xFFFFFFFF


def derive_key(*parts: int | str) -> int:
    """64 bits that depend on every part: (seed, tensor name), then (key, model position)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def draw_below(probability: float, key: int, start: int, like: Array) -> Array:
    """A boolean array of `like`'s shape, each element true with `probability`, for flat indices from `start` on.

    Resolution 2^-32; probabilities of 1 and more are always true.
    """
    bound = round(probability * 2.0**32)
    bits = uniform_bits(key, start, like)
    if bound > _MASK:
        return bits >= 0
    return bits < (np.uint32(bound) if isinstance(like, np.ndarray) else bound)


def uniform_bits(key: int, start: int, like: Array) -> Array:
    """32 uniform bits for each element of `like`'s shape: uint32 in NumPy, int64 in [0, 2^32) in torch."""
    shape = tuple(like.shape)
    count = int(np.prod(shape, dtype=np.int64))
    if (start >> 32) != ((start + max(count, 1) - 1) >> 32):  # a block that crosses a multiple of 2^32
        flat = like.reshape(-1)
        split = 2**32 - (start & _MASK)
        parts = [uniform_bits(key, start, flat[:split]), uniform_bits(key, start + split, flat[split:])]
        return namespace(like).concat(parts).reshape(shape)
    low = (key ^ (start >> 32) * 0x9E3779B9) & _MASK
    high = (key >> 32) & _MASK
    if isinstance(like, np.ndarray):
        return _numpy_bits(low, high, start & _MASK, count).reshape(shape)
    return _torch_bits(low, high, start & _MASK, count, like.device).reshape(shape)


def _numpy_bits(low: int, high: int, start: int, count: int) -> np.ndarray[Any, Any]:
    x = np.arange(start, start + count, dtype=np.uint32)
    shifted = np.empty_like(x)
    x ^= np.uint32(low)
    for after, (shift, factor) in enumerate(((16, _FIRST), (15, _SECOND))):
        np.right_shift(x, np.uint32(shift), out=shifted)
        x ^= shifted
        x *= np.uint32(factor)
        if after == 0:
            x ^= np.uint32(high)
    np.right_shift(x, np.uint32(16), out=shifted)
    x ^= shifted
    return x


def _torch_bits(low: int, high: int, start: int, count: int, device: Any) -> Any:
    import torch

    # torch has no full uint32 arithmetic; the low halves of wrapping int64 products are the same bits.
    x = torch.arange(start, start + count, dtype=torch.int64, device=device) ^ low
    x = ((x ^ (x >> 16)) * _FIRST) & _MASK
    x = x ^ high
    x = ((x ^ (x >> 15)) * _SECOND) & _MASK
    return x ^ (x >> 16)
