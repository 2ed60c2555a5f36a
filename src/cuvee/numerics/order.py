"""Values of given ranks, exactly, by counting into bins.

Several times faster than to partition, above all where many values are equal, as differences of bfloat16 weights are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_BINS = 1 << 12
_PIECE = 1 << 14  # counted at a time: what counting makes of them takes several times their room
_FEW = 1 << 11  # so many are partitioned in no time


def of_ranks(values: np.ndarray[Any, Any], ranks: Sequence[int]) -> list[float]:
    """The values that have these ranks, the smallest of all having rank 0; `values` are numbers, flat."""
    low, high = float(values.min()), float(values.max())
    largest = float(np.finfo(values.dtype).max)
    scale = (_BINS - 1) / (high - low) if 0 < high - low < largest else math.inf
    if values.size <= _FEW or scale > largest:
        ordered = np.partition(values, ranks)
        return [float(ordered[rank]) for rank in ranks]
    bins, counts = np.empty(values.size, np.int16), np.zeros(_BINS + 1, np.int64)
    for start in range(0, values.size, _PIECE):
        piece = slice(start, start + _PIECE)
        # Never falls as the values rise, however it is rounded: a bin holds neighbours only.
        bins[piece] = (values[piece] - values.dtype.type(low)) * values.dtype.type(scale)
        counts += np.bincount(bins[piece], minlength=_BINS + 1)
    ends = counts.cumsum()
    found = []
    for rank in ranks:
        chosen = int(ends.searchsorted(rank, "right"))
        inside = values[np.flatnonzero(bins == chosen)]
        found.append(_of_rank(inside, rank - int(ends[chosen] - counts[chosen])))
    return found


def _of_rank(values: np.ndarray[Any, Any], rank: int) -> float:
    if values.min() == values.max():
        return float(values[0])
    return float(np.partition(values, rank)[rank])
