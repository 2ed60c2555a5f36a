"""A scan: streamed passes over one tensor that give a method the few numbers it needs before it merges.

The partition is fixed by the tensor's shape alone, and partial sums are added in its order, so results depend neither
on block size nor on threads. How blocks are read, and on which device they lie, is the engine's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cuvee.numerics.arrays import dot64, namespace, sum_64
from cuvee.numerics.block import Array, Block
from cuvee.numerics.dots import pairwise_dots
from cuvee.numerics.select import Cut, select_kth_largest

T = TypeVar("T")
Range = tuple[int, int]
Product = tuple[Array, Array]
GRAIN = 1 << 17
"""Elements a scan of up to eight arrays looks at together (at least one row where rows must stay whole)."""


def grain_of(models: int) -> int:
    """Elements a scan of so many arrays looks at together: fewer of more, so that memory does not grow with them."""
    return max(GRAIN >> max((models - 1).bit_length() - 3, 0), 1 << 12)


BlockMap = Callable[[Callable[[Range], T], Iterable[Range]], Iterable[T]]
"""Applies a function to ranges, perhaps on several threads, and gives the results in order."""


@dataclass(frozen=True)
class Scan:
    """One tensor, ready to be streamed.

    Attributes:
        shape: of the tensor.
        models: how many arrays each block holds.
        ranges: the fixed partition, as (start, stop) of flat indices.
        read: gives the block of a range.
        map: runs a function over ranges.
        align: ranges start and end at multiples of this: a row's length where rows must stay whole, else 1.
        grain: ranges that start at multiples of this many elements cost least.

    """

    shape: tuple[int, ...]
    models: int
    ranges: tuple[Range, ...]
    read: Callable[[int, int], Block]
    map: BlockMap[Any]
    align: int = 1
    grain: int = 1

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return self.ranges[-1][1] if self.ranges else 0

    def each(self, function: Callable[[Block], T]) -> list[T]:
        """`function` of every block, in order."""
        return list(self.map(lambda span: function(self.read(*span)), self.ranges))

    def sum(self, function: Callable[[Block], Sequence[Array | Product]]) -> np.ndarray[Any, Any]:
        """The sum over the tensor of each array, or of each product of two, that `function` makes of a block.

        Float64, shape [number of sums].
        """
        parts = self.each(
            lambda block: [sum_64(*item) if isinstance(item, tuple) else sum_64(item) for item in function(block)]
        )
        return np.asarray(np.sum(np.array(parts, dtype=np.float64), axis=0))

    def squares(self, function: Callable[[Block], Sequence[Array]] = tuple) -> np.ndarray[Any, Any]:
        """The float64 sum of the squares of each array that `function` makes of a block; by default, of its own.

        Ranges with values that are not finite count as nothing: what is merged of them is refused by name.
        """
        parts = self.each(lambda block: [dot64(array, array) for array in function(block)])
        sums = np.array(parts, dtype=np.float64)
        return np.asarray(np.sum(np.where(np.isfinite(sums), sums, 0.0), axis=0))

    def column_sums(self, pairs: Callable[[Block], Sequence[tuple[Array, Array]]]) -> list[Array]:
        """The float64 sums of products along the first dimension: one `[1, columns]` array for each pair of a block.

        For tensors of more than two dimensions the columns are those of the last, repeated for each index between.
        """
        between = math.prod(self.shape[1:-1])
        totals: list[Array] = []
        for block_sums in self.each(
            lambda block: [_folded(a, b, block.start, self.align, between) for a, b in pairs(block)]
        ):
            totals = [t + s for t, s in zip(totals, block_sums, strict=True)] if totals else list(block_sums)
        return totals

    def gram(self, function: Callable[[Block], Sequence[Array]] = tuple, *, wide: bool = False) -> np.ndarray[Any, Any]:
        """All dot products between the arrays that `function` makes of a block (by default, its own).

        float64 `[arrays, arrays]`, symmetric; good to about 1e-7 / sqrt(size) of the product of two lengths, or to
        float64 if `wide`.
        """
        parts = self.each(lambda block: pairwise_dots(tuple(function(block)), wide=wide))
        total = np.sum(np.array(parts, dtype=np.float64), axis=0)
        count = round((np.sqrt(8 * total.size + 1) - 1) / 2)
        gram: np.ndarray[Any, Any] = np.zeros((count, count))
        gram[np.tril_indices(count)] = total
        return np.asarray(gram + np.tril(gram, -1).T)

    def kth_largest(self, score: Callable[[Block], Sequence[Array]], ks: Sequence[int]) -> tuple[Cut, ...]:
        """For each array that `score` makes of a block, the cut that keeps exactly its `k` largest entries.

        Scores must not be negative. Among equal scores those of lowest index are kept.
        """
        return select_kth_largest(
            lambda start, stop: score(self.read(start, stop)), self.ranges, ks, self.map, self.align, self.grain
        )


def _folded(a: Array, b: Array, start: int, columns: int, between: int) -> Array:
    """Sums over rows of a * b, rows that are `between` apart belonging together; float64 `[between, columns]`."""
    xp = namespace(a)
    products = xp.astype(a, xp.float64) * xp.astype(b, xp.float64)
    if between == 1:
        return xp.sum(products, axis=0, keepdims=True)
    first = start // columns % between
    return xp.concat(
        [xp.sum(products[(row - first) % between :: between], axis=0, keepdims=True) for row in range(between)]
    )
