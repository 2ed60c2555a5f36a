"""A matrix seen a block of rows at a time, and the few products that decompositions need of it.

Blocks come from anywhere and perhaps on several threads; partial sums are added in the order of the rows, so results
depend on neither. What the matrix holds is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")
Span = tuple[int, int]
_PIECE = 1 << 16


@dataclass(frozen=True)
class RowBlocks:
    """A matrix of `shape`.

    Attributes:
        shape: rows and columns.
        spans: the rows [start, stop) of each block, in order.
        read: rows [start, stop) as float32 or float64; never written to.
        map: runs a function over spans; results come in order.

    """

    shape: tuple[int, int]
    spans: tuple[Span, ...]
    read: Callable[[int, int], Array]
    map: Callable[[Callable[[Span], Any], Iterable[Span]], Iterable[Any]] = map

    @classmethod
    def of(cls, matrix: Array) -> RowBlocks:
        """A matrix in memory, as one block."""
        rows, columns = matrix.shape
        return cls((rows, columns), ((0, rows),), lambda start, stop: matrix[start:stop])

    def each(self, function: Callable[[Span, Array], T]) -> list[T]:
        """`function` of every block with its rows' span, in order."""
        return list(self.map(lambda span: function(span, self.read(*span)), self.spans))

    def times(self, right: Array) -> Array:
        """The product with `right` `[columns, k]`, `[rows, k]`."""
        return np.concatenate(self.each(lambda _, block: block @ right))

    def transposed_times(self, left: Array) -> Array:
        """The transpose's product with `left` `[rows, k]`, `[columns, k]`; float64 sums of the blocks' products."""
        return _added(self.map(lambda span: self.read(*span).T @ left[span[0] : span[1]], self.spans))

    def squared_norm(self) -> float:
        """The sum of the squares of all entries, in float64."""
        return float(sum(self.each(lambda _, block: _squares(block))))

    def squared_distance(self, left: Array, right: Array) -> float:
        """The squared Frobenius norm of this matrix minus `left @ right`, `[rows, k]` and `[k, columns]`."""
        return float(sum(self.each(lambda span, block: _distance(block, left[span[0] : span[1]], right))))

    def gathered(self) -> Array:
        """The whole matrix in memory, filled block by block."""
        whole: Array | None = None
        for start, stop in self.spans:
            block = self.read(start, stop)
            if whole is None:
                whole = np.empty(self.shape, block.dtype)
            whole[start:stop] = block
        return np.empty(self.shape, np.float32) if whole is None else whole

    def gram(self) -> Array:
        """The transpose times the matrix, `[columns, columns]`, float64 sums of the blocks' products."""
        return _added(self.map(lambda span: _gram_of(self.read(*span)), self.spans))

    def gram_64(self) -> Array:
        """The same with products in float64 too: eigenvalues good to 1e-16 of the largest."""
        return _added(self.map(lambda span: _gram_of(self.read(*span).astype(np.float64)), self.spans))

    def row_gram(self) -> Array:
        """The matrix times its transpose in float64, `[rows, rows]`; reads blocks again for every block before them."""
        gram: Array = np.empty((self.shape[0], self.shape[0]))
        for number, (start, stop) in enumerate(self.spans):
            block = self.read(start, stop).astype(np.float64)
            for first, last in self.spans[: number + 1]:
                other = block if first == start else self.read(first, last).astype(np.float64)
                gram[start:stop, first:last] = block @ other.T
                gram[first:last, start:stop] = gram[start:stop, first:last].T
        return gram


def _added(parts: Iterable[Array]) -> Array:
    """The float64 sum; each part is let go as soon as it is added."""
    total: Array | None = None
    for part in parts:
        if total is None:
            total = part.astype(np.float64)
        else:
            total += part
    assert total is not None  # noqa: S101 - a matrix has at least one block
    return total


def _gram_of(block: Array) -> Array:
    return np.asarray(block.T @ block)


def _distance(block: Array, left: Array, right: Array) -> float:
    """The squared norm of `block - left @ right`, some rows at a time: the product is never there as a whole."""
    step = max((16 * _PIECE) // max(block.shape[1], 1), 1)
    rows = range(0, block.shape[0], step)
    return sum(_squares(block[i : i + step] - left[i : i + step] @ right) for i in rows)


def _squares(block: Array) -> float:
    """The sum of squares in float64, in pieces that stay in the cache."""
    flat = block.reshape(-1)
    pieces = (flat[i : i + _PIECE].astype(np.float64) for i in range(0, flat.size, _PIECE))
    return float(sum(np.dot(piece, piece) for piece in pieces))
