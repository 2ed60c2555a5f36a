"""Dot products of every pair of arrays: what Gram matrices are added up from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuvee.numerics.arrays import dot64, sum_64
from cuvee.numerics.block import Array

_CACHED = 1 << 17  # doubles of all arrays together that stay in the second-level cache
_SMALLEST = 1e-20  # a sum of squares from which on what float32 loses below 1e-38 does not matter


def pairwise_dots(arrays: Sequence[Array], *, wide: bool = False) -> list[float]:
    """arrays[i] . arrays[j] for all j <= i, row by row of the lower triangle.

    Float32 arrays on the CPU are multiplied in runs, as `sum_64` does, wherever the squares neither vanish nor overflow
    there; a matrix product would be slower, as there are too few of them. That is off by about 1e-7 / sqrt(size) of the
    product of the two lengths. Products that all but cancel need more: all is float64 if `wide`.
    """
    count = len(arrays)
    if not wide and isinstance(arrays[0], np.ndarray) and all(array.dtype == np.float32 for array in arrays):
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [sum_64(array, array) for array in arrays]
        if all(_SMALLEST < square < math.inf for square in squares):
            return [squares[i] if i == j else sum_64(arrays[i], arrays[j]) for i in range(count) for j in range(i + 1)]
    if isinstance(arrays[0], np.ndarray):
        return _wide_dots([array.reshape(-1) for array in arrays])
    return [dot64(arrays[i], arrays[j]) for i in range(count) for j in range(i + 1)]


def _wide_dots(flat: Sequence[np.ndarray[Any, Any]]) -> list[float]:
    """The same in float64 throughout: each piece is widened once and meets all others while it is in the cache."""
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
