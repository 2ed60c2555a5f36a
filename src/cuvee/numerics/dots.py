"""Dot products of every pair of arrays in float64: what Gram matrices are added up from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cuvee.numerics.arrays import dot64
from cuvee.numerics.block import Array

_CACHED = 1 << 17  # doubles of all arrays together that stay in the second-level cache


def pairwise_dots(arrays: Sequence[Array]) -> list[float]:
    """arrays[i] . arrays[j] for all j <= i, row by row of the lower triangle.

    Each piece is widened once and meets all others while it is in the cache. A matrix product of the widened pieces
    would be four times slower: there are too few of them.
    """
    if not isinstance(arrays[0], np.ndarray):
        return [dot64(arrays[i], arrays[j]) for i in range(len(arrays)) for j in range(i + 1)]
    flat = [array.reshape(-1) for array in arrays]
    step = max(min(_CACHED // len(flat), 1 << 15), 1 << 10)
    wide = np.empty((len(flat), min(step, flat[0].size)))
    totals = [0.0] * (len(flat) * (len(flat) + 1) // 2)
    for start in range(0, flat[0].size, step):
        count = min(step, flat[0].size - start)
        pieces = [row[:count] for row in wide]
        for piece, array in zip(pieces, flat, strict=True):
            piece[:] = array[start : start + count]
        position = 0
        for i, piece in enumerate(pieces):
            for other in pieces[: i + 1]:
                totals[position] += float(np.dot(piece, other))
                position += 1
    return totals
