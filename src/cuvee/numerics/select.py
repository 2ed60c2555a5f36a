"""Exact selection of the k-th largest value of a streamed tensor, in two passes and bounded memory.

A small sample brackets the value; one counting pass proves the bracket and collects only what lies strictly inside it;
the answer is selected from those few. Values equal to an end of the bracket are counted, never collected, because
deltas of bfloat16 weights repeat the same magnitude millions of times. If the bracket misses or holds too much, it is
moved or narrowed and the pass repeated, so the result is exact whatever the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.numerics.arrays import namespace, to_numpy
from cuvee.numerics.block import Array

Range = tuple[int, int]
Scores = Callable[[int, int], Sequence[Array]]
_CAPACITY = 1 << 21  # values one search collects in a pass; where more lie inside, the bracket is narrowed instead
_SAMPLE_CHUNKS = 16
_SAMPLE_LENGTH = 2048


@dataclass(frozen=True)
class Cut:
    """Where the k largest end: all above `value`, and those equal to it up to flat index `last`."""

    value: float
    last: int

    def keep(self, scores: Array, start: int) -> Array:
        """A boolean array of `scores`' shape: which entries are kept, for scores that begin at flat index `start`."""
        size = math.prod(scores.shape)
        if start + size - 1 <= self.last:
            return scores >= self.value
        if start > self.last:
            return scores > self.value
        xp = namespace(scores)
        equal = xp.reshape(scores == self.value, (-1,))
        first = self.last - start + 1
        equal = xp.concat([equal[:first], xp.zeros_like(equal[first:])])
        return (scores > self.value) | xp.reshape(equal, scores.shape)


KEEP_ALL = Cut(-1.0, -1)
KEEP_NONE = Cut(math.inf, -1)


@dataclass
class _Search:
    """The state of one selection.

    The k-th largest certainly lies in [floor, ceiling]; the next pass looks at [low, high].
    """

    k: int
    floor: float = 0.0
    ceiling: float = math.inf
    low: float = 0.0
    high: float = math.inf
    cut: Cut | None = None


@dataclass(frozen=True)
class _Counted:
    """What one block holds, relative to a bracket."""

    above: int
    at_high: int
    inside: int
    values: np.ndarray[Any, Any]  # those inside, or the first of them
    at_low: int


def select_kth_largest(
    scores: Scores,
    ranges: Sequence[Range],
    ks: Sequence[int],
    run: Callable[..., Iterable[Any]],
    align: int = 1,
) -> tuple[Cut, ...]:
    """The cut for each `k` of `ks` and the array of the same position that `scores(start, stop)` gives.

    Args:
        scores: gives the scores of a range of flat indices.
        ranges: a partition of the tensor.
        ks: how many entries to keep, one for each array of scores.
        run: maps a function over ranges, in order.
        align: ranges asked for start and end at multiples of this (a row's length, where rows must stay whole).

    Entries that are not a number count as below everything.

    """
    size = ranges[-1][1] if ranges else 0
    searches = [_Search(k) for k in ks]
    for search in searches:
        if search.k >= size:
            search.cut = KEEP_ALL
        elif search.k <= 0:
            search.cut = KEEP_NONE
    if any(search.cut is None for search in searches) and len(ranges) > 1:
        _bracket_by_sample(scores, size, searches, align)
    quota = max(_CAPACITY // max(len(ranges), 1), 256)
    while open_ := [position for position, search in enumerate(searches) if search.cut is None]:
        counted = list(run(lambda span, wanted=tuple(open_): _count(scores, span, searches, wanted, quota), ranges))
        for column, position in enumerate(open_):
            _narrow(searches[position], [row[column] for row in counted], scores, ranges, position)
    return tuple(search.cut for search in searches if search.cut is not None)


def _bracket_by_sample(scores: Scores, size: int, searches: Sequence[_Search], align: int) -> None:
    """Sets each open search's bracket from a sample spread evenly over the tensor."""
    chunks = min(max(size >> 17, _SAMPLE_CHUNKS), 512)
    length = min(-(-min(_SAMPLE_LENGTH, size // chunks) // align) * align, size)
    starts = dict.fromkeys((size - length) * i // (chunks - 1) // align * align for i in range(chunks))
    parts = [[to_numpy(array).reshape(-1) for array in scores(start, start + length)] for start in starts]
    for position, search in enumerate(searches):
        if search.cut is None:
            sample = np.concatenate([part[position] for part in parts])
            _bracket(search, sample, search.k / size)


def _bracket(search: _Search, sample: np.ndarray[Any, Any], fraction: float) -> None:
    """Sets the bracket around the quantile of `sample` that has `fraction` above it, six standard deviations wide."""
    ordered = np.sort(sample[np.isfinite(sample)])[::-1]
    search.low, search.high = search.floor, search.ceiling
    if ordered.size == 0:
        return
    slack = 6 * math.sqrt(fraction * (1 - fraction) / ordered.size) + 2 / ordered.size
    upper, lower = math.floor((fraction - slack) * ordered.size), math.ceil((fraction + slack) * ordered.size)
    if upper >= 0:
        search.high = float(ordered[upper])
    if lower < ordered.size:
        search.low = float(ordered[lower])


def _count(
    scores: Scores, span: Range, searches: Sequence[_Search], wanted: Sequence[int], quota: int
) -> list[_Counted]:
    """How each wanted score of one block lies relative to its bracket."""
    arrays = scores(*span)
    counted = []
    for position in wanted:
        array, low, high = arrays[position], searches[position].low, searches[position].high
        count = namespace(array).count_nonzero
        above = int(count(array > high))
        at_high = int(count(array >= high)) - above
        inside, at_low, values = 0, 0, np.empty(0, np.float32)
        if low < high:
            within = array > low
            inside = int(count(within)) - above - at_high
            at_low = int(count(array >= low)) - inside - above - at_high
            values = to_numpy(array[within & (array < high)]).reshape(-1)[:quota]
        counted.append(_Counted(above, at_high, inside, values, at_low))
    return counted


def _narrow(
    search: _Search, counted: Sequence[_Counted], scores: Scores, ranges: Sequence[Range], position: int
) -> None:
    """Ends a search whose value the counts reveal; otherwise gives it a better bracket."""
    above, at_high = sum(c.above for c in counted), sum(c.at_high for c in counted)
    inside, at_low = sum(c.inside for c in counted), sum(c.at_low for c in counted)
    rank = search.k - above  # position among what lies at or below `high`, from 1

    def cut(value: float, rank: int, equals: Sequence[int]) -> Cut:
        return _cut(value, rank, equals, scores, ranges, position)

    if rank <= 0:
        search.floor, search.low, search.high = search.high, search.high, search.ceiling
    elif rank <= at_high:
        search.cut = cut(search.high, rank, [c.at_high for c in counted])
    elif rank <= at_high + inside:
        values = np.concatenate([c.values for c in counted])
        rank -= at_high
        if values.size < inside:
            search.floor, search.ceiling = search.low, search.high
            _bracket(search, values, rank / inside)
            return
        value = float(np.partition(values, values.size - rank)[values.size - rank])
        rank -= int(np.count_nonzero(values > value))
        search.cut = cut(value, rank, [int(np.count_nonzero(c.values == value)) for c in counted])
    elif rank <= at_high + inside + at_low:
        search.cut = cut(search.low, rank - at_high - inside, [c.at_low for c in counted])
    elif search.low > search.floor:
        search.ceiling, search.low, search.high = search.low, search.floor, search.low
    else:
        search.cut = KEEP_ALL  # fewer numbers than k: the rest are NaN, which the output check reports


def _cut(value: float, rank: int, equals: Sequence[int], scores: Scores, ranges: Sequence[Range], position: int) -> Cut:
    """The cut at `value` that keeps `rank` of those equal to it; the last one's block is read again to find it."""
    for span, count in zip(ranges, equals, strict=True):
        if rank <= count:
            array = to_numpy(scores(*span)[position]).reshape(-1)
            return Cut(value, span[0] + int(np.flatnonzero(array == value)[rank - 1]))
        rank -= int(count)
    raise AssertionError("the counts of a selection do not add up")  # a fault here, never the user's
