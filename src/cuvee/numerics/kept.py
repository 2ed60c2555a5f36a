"""One score of every element, kept: for tensors of moderate size cheaper than computing it anew in every pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.numerics.arrays import as_mask, to_numpy
from cuvee.numerics.block import Array, Block
from cuvee.numerics.order import of_ranks as values_of_ranks
from cuvee.numerics.scan import GRAIN, Scan
from cuvee.numerics.select import KEEP_ALL, KEEP_NONE, Cut

AFFORDABLE = 1 << 23
"""Elements of a tensor whose scores may be kept: four bytes each."""
KEEPING = 10
"""Bytes an element that keeping takes at most: blocks' scores, those of all together, and what is ranked of them."""
_SAMPLE = 16  # as a power of 2, about so many elements bracket a rank


@dataclass(frozen=True)
class KeptScores:
    """The scores of a whole tensor, `[size]`."""

    values: np.ndarray[Any, Any]

    def of(self, block: Block) -> Array:
        """The scores of a block."""
        shape = block[0].shape
        return self.values[block.start : block.start + math.prod(shape)].reshape(shape)

    def kth_largest(self, k: int) -> Cut:
        """The cut that keeps exactly the `k` largest, the lowest index first; as `Scan.kth_largest`."""
        size = self.values.size
        # What is no number lies below everything; the largest is none if any is.
        numbers = int(np.count_nonzero(self.values == self.values)) if np.isnan(self.values.max()) else size
        if k >= numbers:
            return KEEP_ALL
        if k <= 0:
            return KEEP_NONE
        ((value,),) = self.ranked([(numbers - k,)])
        equal = np.flatnonzero(self.values == value)
        return Cut(value, int(equal[k - 1 - np.count_nonzero(self.values > value)]))

    def ranked(self, groups: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """The values of neighbouring ranks, for each group of them; the smallest of all has rank 0.

        A sample brackets each group; what lies in a bracket is picked out piece by piece, in the cache, and sorted out.
        """
        size = self.values.size
        sample = self.values[:: max(size >> _SAMPLE, 1)]
        slack = 3 * math.sqrt(sample.size) + 1  # six standard deviations in the middle, more towards the ends
        ends = [(min(group) / size * sample.size - slack, max(group) / size * sample.size + slack) for group in groups]
        places = [place for low, high in ends for place in (max(int(low), 0), min(int(high), sample.size - 1))]
        bounds = values_of_ranks(sample, places)
        brackets = list(zip(bounds[::2], bounds[1::2], strict=True))
        below = [0] * len(groups)
        inside: list[list[Array]] = [[] for _ in groups]
        for start in range(0, size, GRAIN):
            piece = self.values[start : start + GRAIN]
            for number, (low, high) in enumerate(brackets):
                below[number] += int(np.count_nonzero(piece < low))
                inside[number].append(piece[np.flatnonzero((piece >= low) & (piece <= high))])
        found = []
        for group, under, pieces in zip(groups, below, inside, strict=True):
            first, values = under, np.concatenate(pieces)
            if not (first <= min(group) and max(group) < first + values.size):  # the ends, or an unlucky sample
                first, values = 0, self.values
            found.append(values_of_ranks(values, [rank - first for rank in group]))
        return found


def keep_scores(scan: Scan, score: Callable[[Block], Array]) -> KeptScores | None:
    """The scores of the tensor, or None if it is too large to keep them."""
    if scan.size > AFFORDABLE:
        return None
    values: np.ndarray[Any, Any] | None = None
    lock = threading.Lock()

    def keep(block: Block) -> None:
        nonlocal values
        found = to_numpy(score(block)).reshape(-1)
        with lock:
            values = np.empty(scan.size, found.dtype) if values is None else values
        values[block.start : block.start + found.size] = found

    scan.each(keep)
    return None if values is None else KeptScores(values)


def of_ranks(scan: Scan, score: Callable[[Block], Array], ranks: Sequence[int]) -> tuple[float, ...]:
    """The values of a non-negative score that have these ranks among all of the tensor; the smallest has rank 0."""
    kept = keep_scores(scan, score)
    if kept is not None:
        return tuple(value for (value,) in kept.ranked([(rank,) for rank in ranks]))
    cuts = scan.kth_largest(lambda block: [score(block)] * len(ranks), [scan.size - rank for rank in ranks])
    return tuple(cut.value for cut in cuts)


def largest_share(scan: Scan, score: Callable[[Block], Array], share: float) -> tuple[Cut, KeptScores | None]:
    """The cut that keeps `share` of the elements whose non-negative score is not zero; and the scores, where kept."""
    kept = keep_scores(scan, score)
    if kept is not None:
        return kept.kth_largest(int(share * np.count_nonzero(kept.values))), kept
    nonzero = scan.sum(lambda block: [as_mask(score(block) != 0, block[0])])[0]
    (cut,) = scan.kth_largest(lambda block: [score(block)], [int(share * nonzero)])
    return cut, None
