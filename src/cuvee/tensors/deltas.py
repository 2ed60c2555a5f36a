"""Weight updates given by small factors: their products, plain, Hadamard and Kronecker, a few rows at a time.

Only the factors are ever held whole, and only while their tensor is worked on. What an update is added to, and where
it comes from, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources

Array = np.ndarray[Any, Any]

_TILE_ELEMENTS = 1 << 16  # rows are multiplied in tiles of about so many elements


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale * b @ a` (LoRA, arXiv:2106.09685), or its transpose, in the shape of the weight that it is meant for.

    Attributes:
        b: `[out, rank]`; trailing dimensions of 1 do not matter. It may have more rows than are wanted.
        a: `[rank, in]`; the dimensions of a convolution's kernel count as inputs. It may have more columns.
        scale: the factor.
        shape: of the weight.
        transposed: whether the weight is `[in, out]`.
        experts: how many such matrices lie behind each other in the weight's first dimension; if more than one, `a` is
            `[experts * rank, in]` and `b` is `[out, rank * experts]`, as PEFT lays them out.
        scales: a further factor of each of the ranks; none are ones.

    """

    b: sources.Source
    a: sources.Source
    scale: float
    shape: tuple[int, ...]
    transposed: bool = False
    experts: int = 1
    scales: tuple[float, ...] = ()
    kind: Literal["low_rank"] = "low_rank"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """Both factors."""
        return (self.b, self.a)

    @property
    def dtype(self) -> str:
        """That of `b`."""
        return self.b.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of both factors, whatever the range."""
        return _whole_extents(self.children) if start < stop else iter(())

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        return self.read_onto(None, start, stop, reader, dtype)

    def read_onto(
        self, base: Array | None, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]
    ) -> Array:
        """Elements [start, stop), added to those of `base`, as a fresh array of `dtype`."""
        size = math.prod(self.shape) // self.experts
        fresh = np.empty(stop - start, dtype)
        for expert in range(start // size, -(-stop // size)):
            begin = expert * size
            low, high = max(start, begin), min(stop, begin + size)
            left, right = self._factors(expert, reader, dtype)
            part = slice(low - start, high - start)
            _multiply(left, right, low - begin, fresh[part], None if base is None else base[part])
        return fresh

    @property
    def grain(self) -> int:
        """Ranges that start at multiples of this many elements cost least."""
        columns = math.prod(self.shape[2:] if self.experts > 1 else self.shape[1:])
        rows = self.shape[1] if self.experts > 1 else self.shape[0]
        return min(_rows_in_tile(columns), max(rows, 1)) * max(columns, 1)

    def _factors(self, expert: int, reader: sources.Reader, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """The factors `[rows, rank]`, with the scale in it, and `[rank, columns]` of one expert."""
        matrix = self.shape[1:] if self.experts > 1 else self.shape
        rows, columns = matrix[0], math.prod(matrix[1:])

        def left() -> Array:
            wanted = self._a(expert, reader, dtype).T if self.transposed else self._b(expert, reader, dtype)
            factors = self.scale * np.array(self.scales) if self.scales else self.scale
            return np.ascontiguousarray(wanted[:rows] * np.asarray(factors, dtype))

        def right() -> Array:
            wanted = self._b(expert, reader, dtype).T if self.transposed else self._a(expert, reader, dtype)
            return np.ascontiguousarray(wanted[:, :columns])

        return reader.keep(self, (expert, "left", dtype), left), reader.keep(self, (expert, "right", dtype), right)

    def _a(self, expert: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        rows = self.a.shape[0] // self.experts
        columns = math.prod(self.a.shape[1:])
        begin = expert * rows * columns
        return self.a.read(begin, begin + rows * columns, reader, dtype).reshape(rows, columns)

    def _b(self, expert: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        whole = reader.keep(self.b, dtype, lambda: _whole(self.b, reader, dtype).reshape(self.b.shape[0], -1))
        return whole[:, expert :: self.experts]


def stacked(updates: Sequence[tuple[LowRank, float]]) -> list[LowRank]:
    """The sum of updates times a factor each, as few products as their shapes allow: factors lie side by side.

    Args:
        updates: for tensors of one shape.

    """
    alike: dict[Any, list[tuple[LowRank, float]]] = {}
    for number, (update, factor) in enumerate(updates):
        sides = (update.transposed, update.b.shape[:1], update.b.shape[2:], update.a.shape[1:])
        alike.setdefault(sides if update.experts == 1 else number, []).append((update, factor))
    return [_side_by_side(group) for group in alike.values()]


def _side_by_side(group: Sequence[tuple[LowRank, float]]) -> LowRank:
    first, factor = group[0]
    if len(group) == 1:
        return replace(first, scale=first.scale * factor)
    scales = [
        scale * each.scale * factor for each, factor in group for scale in each.scales or (1.0,) * each.a.shape[0]
    ]
    b = sources.Joined(tuple(each.b for each, _ in group), 1)
    a = sources.Joined(tuple(each.a for each, _ in group), 0)
    return replace(first, b=b, a=a, scale=1.0, scales=tuple(scales))


@dataclass(frozen=True, slots=True)
class Hadamard:
    """The elementwise product of two tensors (LoHa, arXiv:2108.06098)."""

    left: sources.Source
    right: sources.Source
    kind: Literal["hadamard"] = "hadamard"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """Both factors."""
        return (self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the factors."""
        return self.left.shape

    @property
    def dtype(self) -> str:
        """That of the left factor."""
        return self.left.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop) of both."""
        yield from self.left.extents(start, stop)
        yield from self.right.extents(start, stop)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        fresh = self.left.read(start, stop, reader, dtype)
        fresh *= reader.values(self.right, start, stop, dtype)
        return fresh


@dataclass(frozen=True, slots=True)
class Kronecker:
    """`scale * kron(left, right)` of two matrices (LoKr, arXiv:2212.10650)."""

    left: sources.Source
    right: sources.Source
    scale: float
    kind: Literal["kronecker"] = "kronecker"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """Both factors."""
        return (self.left, self.right)

    @property
    def shape(self) -> tuple[int, ...]:
        """The products of the factors' rows and columns."""
        (rows, columns), (more_rows, more_columns) = self.left.shape, self.right.shape
        return (rows * more_rows, columns * more_columns)

    @property
    def dtype(self) -> str:
        """That of the left factor."""
        return self.left.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of both factors, whatever the range."""
        return _whole_extents(self.children) if start < stop else iter(())

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        columns = self.shape[1]
        left = reader.keep(self, ("left", dtype), lambda: _whole(self.left, reader, dtype) * dtype.type(self.scale))
        right = reader.keep(self.right, dtype, lambda: _whole(self.right, reader, dtype))
        rows = np.arange(start // columns, -(-stop // columns))
        outer, inner = rows // right.shape[0], rows % right.shape[0]
        found: Array = (left[outer][:, :, None] * right[inner][:, None, :]).reshape(-1)
        begin = start - int(rows[0]) * columns
        return found[begin : begin + stop - start]


def _multiply(left: Array, right: Array, start: int, target: Array, base: Array | None) -> None:
    """Puts elements from `start` on of `left @ right` into `target`, added to `base` while they are in the cache.

    Tiles begin at fixed rows, so that an element comes out the same whichever range asked for it.
    """
    rows, columns = left.shape[0], right.shape[1]
    step = _rows_in_tile(columns)
    stop = start + target.size
    for row in range(start // columns // step * step, min(-(-stop // columns), rows), step):
        begin, end = row * columns, min(row + step, rows) * columns
        low, high = max(start, begin), min(stop, end)
        part = target[low - start : high - start]
        if part.size == end - begin:
            np.matmul(left[row : row + step], right, out=part.reshape(-1, columns))
        else:
            part[:] = np.matmul(left[row : row + step], right).reshape(-1)[low - begin : high - begin]
        if base is not None:
            part += base[low - start : high - start]


def _rows_in_tile(columns: int) -> int:
    return max(_TILE_ELEMENTS // max(columns, 1), 1)


def _whole(source: sources.Source, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
    return source.read(0, math.prod(source.shape), reader, dtype).reshape(source.shape)


def _whole_extents(children: tuple[sources.Source, ...]) -> Iterator[sources.Extent]:
    for child in children:
        yield from child.extents(0, math.prod(child.shape))
