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
from cuvee.numerics.order import of_ranks

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

    The k-th largest certainly lies in [floor, ceiling]; the next pass looks at [low, high], and guesses `middle`.
    """

    k: int
    floor: float = 0.0
    ceiling: float = math.inf
    low: float = 0.0
    high: float = math.inf
    middle: float = 0.0
    cut: Cut | None = None


@dataclass(frozen=True)
class _Counted:
    """What one block holds, relative to a bracket."""

    above: int
    at_high: int
    at_middle: int
    at_low: int
    inside: int
    values: np.ndarray[Any, Any]  # those inside that are not the middle, or the first of them


def select_kth_largest(
    scores: Scores,
    ranges: Sequence[Range],
    ks: Sequence[int],
    run: Callable[..., Iterable[Any]],
    align: int = 1,
    grain: int = 1,
) -> tuple[Cut, ...]:
    """The cut for each `k` of `ks` and the array of the same position that `scores(start, stop)` gives.

    Args:
        scores: gives the scores of a range of flat indices.
        ranges: a partition of the tensor.
        ks: how many entries to keep, one for each array of scores.
        run: maps a function over ranges, in order.
        align: ranges asked for start and end at multiples of this (a row's length, where rows must stay whole).
        grain: ranges that start at multiples of this many elements cost least, and shorter ones no less.

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
        _bracket_by_sample(scores, size, searches, align, grain)
    quota = max(_CAPACITY // max(len(ranges), 1), 256)
    while open_ := [position for position, search in enumerate(searches) if search.cut is None]:
        counted = list(run(lambda span, wanted=tuple(open_): _count(scores, span, searches, wanted, quota), ranges))
        for column, position in enumerate(open_):
            _narrow(searches[position], [row[column] for row in counted], scores, ranges, position)
    return tuple(search.cut for search in searches if search.cut is not None)


def working_bytes(size: int, shares: Sequence[float], arrays: int) -> int:
    """About the memory, in float32, that searches in a tensor of `size` elements take beside its blocks.

    Args:
        size: of the tensor.
        shares: for each search, which part of the values is to lie above.
        arrays: of scores that are searched; several searches may share one.

    """
    chunks = min(max(size >> 18, _SAMPLE_CHUNKS), 512)
    sample = min(chunks * _SAMPLE_LENGTH, size)
    spread = 12 * size / math.sqrt(max(sample, 1))  # a bracket is twelve deviations wide
    inside = [min(spread * math.sqrt(max(share * (1 - share), 0.0)), _CAPACITY, size) for share in shares]
    # One at a time is joined, copied and partitioned, first of the samples and then of what lies inside.
    return int(4 * max(sample * (arrays + 3), sum(inside) + 2 * max(inside, default=0)))


def most_bytes(size: int, searches: int) -> int:
    """The most that so many searches keep in memory, in float32, whatever the values are."""
    chunks = min(max(size >> 18, _SAMPLE_CHUNKS), 512)
    return 4 * searches * (min(chunks * _SAMPLE_LENGTH, size) + min(_CAPACITY, size))


def _bracket_by_sample(scores: Scores, size: int, searches: Sequence[_Search], align: int, grain: int) -> None:
    """Sets each open search's bracket from a sample spread evenly over the tensor."""
    chunks = min(max(size >> 18, _SAMPLE_CHUNKS), 512)
    length, stride = -(-min(_SAMPLE_LENGTH, size // chunks) // align) * align, 1
    if grain > max(length, align) and length and grain % align == 0:
        # As many values, from all over a grain: neighbours in a low-rank matrix are of one size. Odd, so that not
        # every row gives the same columns.
        stride, length, align = grain // length | 1, grain, grain
    length = min(length, size)
    starts = dict.fromkeys((size - length) * i // (chunks - 1) // align * align for i in range(chunks))
    parts = [[to_numpy(array).reshape(-1)[::stride] for array in scores(start, start + length)] for start in starts]
    for position, search in enumerate(searches):
        if search.cut is None:
            sample = np.concatenate([part[position] for part in parts])
            _bracket(search, sample, search.k / size)


def _bracket(search: _Search, sample: np.ndarray[Any, Any], fraction: float) -> None:
    """Sets the bracket around the quantile of `sample` that has `fraction` above it, six standard deviations wide."""
    sample = sample[np.isfinite(sample)]
    count = sample.size
    search.low, search.high = search.floor, search.ceiling
    if count == 0:
        return
    slack = 6 * math.sqrt(fraction * (1 - fraction) / count) + 2 / count
    upper, lower = math.floor((fraction - slack) * count), math.ceil((fraction + slack) * count)
    middle = min(int(fraction * count), count - 1)
    places = [place for place in (upper, middle, lower) if 0 <= place < count]
    found = dict(zip(places, of_ranks(sample, [count - 1 - place for place in places]), strict=True))
    search.middle = found[middle]
    search.high, search.low = found.get(upper, search.high), found.get(lower, search.low)


def _count(
    scores: Scores, span: Range, searches: Sequence[_Search], wanted: Sequence[int], quota: int
) -> list[_Counted]:
    """How each wanted score of one block lies relative to its bracket."""
    arrays = scores(*span)
    counted = []
    for position in wanted:
        array, search = arrays[position].reshape(-1), searches[position]
        xp = namespace(array)
        count = xp.count_nonzero
        at_high, at_low, at_middle = int(count(array == search.high)), int(count(array == search.low)), 0
        top = array >= search.high
        inside = (array > search.low) ^ top if search.low < search.high else xp.zeros_like(top)
        if search.low < search.middle < search.high:
            middle = array == search.middle
            at_middle = int(count(middle))
            inside &= ~middle
        values = to_numpy(xp.take(array, xp.nonzero(inside)[0]))  # faster than to index by a mask
        above = int(count(top)) - at_high
        counted.append(_Counted(above, at_high, at_middle, at_low, values.size, values[:quota].copy()))
    return counted


def _narrow(
    search: _Search, counted: Sequence[_Counted], scores: Scores, ranges: Sequence[Range], position: int
) -> None:
    """Ends a search whose value the counts reveal; otherwise gives it a better bracket."""
    split = search.low < search.middle < search.high
    at_high, at_low = sum(c.at_high for c in counted), sum(c.at_low for c in counted) * (search.low < search.high)
    inside, at_middle = sum(c.inside for c in counted), sum(c.at_middle for c in counted) * split
    rank = search.k - sum(c.above for c in counted)  # position among what lies at or below `high`, from 1

    def cut(value: float, rank: int, equals: Sequence[int]) -> Cut:
        return _cut(value, rank, equals, scores, ranges, position)

    if rank <= 0:
        search.floor, search.low, search.high = search.high, search.high, search.ceiling
    elif rank <= at_high:
        search.cut = cut(search.high, rank, [c.at_high for c in counted])
    elif rank <= at_high + inside + at_middle:
        values = np.concatenate([c.values for c in counted])
        rank -= at_high
        if values.size < inside:
            search.floor, search.ceiling = search.low, search.high
            _bracket(search, np.append(values, search.middle) if split else values, rank / (inside + at_middle))
            return
        larger = int(np.count_nonzero(values > search.middle)) if split else inside
        if larger < rank <= larger + at_middle:
            search.cut = cut(search.middle, rank - larger, [c.at_middle for c in counted])
            return
        place = rank if rank <= larger else rank - at_middle
        (value,) = of_ranks(values, [values.size - place])
        place -= int(np.count_nonzero(values > value))
        search.cut = cut(value, place, [int(np.count_nonzero(c.values == value)) for c in counted])
    elif rank <= at_high + inside + at_middle + at_low:
        search.cut = cut(search.low, rank - at_high - inside - at_middle, [c.at_low for c in counted])
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
