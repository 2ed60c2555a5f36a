"""Tensors that are another tensor changed: something added, rows or columns scaled, rescaled or replaced, a part taken.

Arithmetic is in the dtype asked for if that is float32 or float64, else in float32 with one rounding. What the changes
are for is not known here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources
from cuvee.tensors.deltas import LowRank

Array = np.ndarray[Any, Any]

_NORM_ELEMENTS = 1 << 18  # elements whose squares are summed together


@dataclass(frozen=True, slots=True)
class Added:
    """`base + scale * delta`, in the base's dtype and shape."""

    base: sources.Source
    delta: sources.Source
    scale: float = 1.0
    kind: Literal["added"] = "added"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """Base and delta."""
        return (self.base, self.delta)

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The base's."""
        return self.base.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop)."""
        yield from self.base.extents(start, stop)
        yield from self.delta.extents(start, stop)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        wide = _wide(dtype)
        base = reader.values(self.base, start, stop, wide)
        if isinstance(self.delta, LowRank) and self.scale == 1.0:
            fresh = self.delta.read_onto(base, start, stop, reader, wide)
        else:
            fresh = self.delta.read(start, stop, reader, wide)
            fresh *= wide.type(self.scale)
            fresh += base
        return fresh.astype(dtype, copy=False)


class _Changed(ABC):
    """What tensors have in common that are `source` in shape and dtype, and need all of their other children."""

    __slots__ = ()
    source: sources.Source

    @property
    @abstractmethod
    def children(self) -> tuple[sources.Source, ...]:
        """The tensor, and what it is changed by."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return self.source.shape

    @property
    def dtype(self) -> str:
        """The tensor's."""
        return self.source.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop), and of all that they are changed by."""
        source, *others = self.children
        yield from source.extents(start, stop)
        for other in others:
            yield from other.extents(0, math.prod(other.shape))


@dataclass(frozen=True, slots=True)
class Scaled(_Changed):
    """A tensor whose rows (`axis` 0) or columns (`axis` 1) are multiplied by a number each; a vector is one column."""

    source: sources.Source
    by: sources.Source
    axis: int
    kind: Literal["scaled"] = "scaled"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The tensor and its factors."""
        return (self.source, self.by)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        wide = _wide(dtype)
        size = math.prod(self.by.shape)
        factors = reader.keep(self.by, wide, lambda: self.by.read(0, size, reader, wide))
        values = reader.values(self.source, start, stop, wide)
        return _times(values, start, _columns(self.shape), factors, self.axis).astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class Renormed(_Changed):
    """A tensor whose rows (`axis` 0) or columns (`axis` 1) have been given new lengths: DoRA (arXiv:2402.09353).

    Row i becomes `magnitude[i] * row / |row|`.
    """

    source: sources.Source
    magnitude: sources.Source
    axis: int
    kind: Literal["renormed"] = "renormed"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The tensor and the lengths."""
        return (self.source, self.magnitude)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        wide, columns = _wide(dtype), _columns(self.shape)
        if self.axis == 1:
            factors = reader.keep(self, wide, lambda: self._lengths(reader, wide) / self._column_norms(reader, wide))
            values = reader.values(self.source, start, stop, wide)
            return _times(values, start, columns, factors.astype(wide), 1).astype(dtype, copy=False)
        first, last = start // columns, -(-stop // columns)
        rows = self.source.read(first * columns, last * columns, reader, wide).reshape(-1, columns)
        lengths = reader.keep(self.magnitude, wide, lambda: self._lengths(reader, wide))
        norms = np.sqrt(np.sum(rows * rows, axis=1, dtype=np.float64))
        rows *= (lengths[first:last] / norms).astype(wide)[:, None]
        return rows.reshape(-1)[start - first * columns : stop - first * columns].astype(dtype, copy=False)

    def _lengths(self, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        return self.magnitude.read(0, math.prod(self.magnitude.shape), reader, dtype).astype(np.float64)

    def _column_norms(self, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        size, columns = math.prod(self.shape), _columns(self.shape)
        step = max(_NORM_ELEMENTS // columns, 1) * columns
        total = np.zeros(columns)
        for start in range(0, size, step):
            block = self.source.read(start, min(start + step, size), reader, dtype).reshape(-1, columns)
            total += np.sum(block * block, axis=0, dtype=np.float64)
        return np.asarray(np.sqrt(total))


@dataclass(frozen=True, slots=True)
class RowsReplaced(_Changed):
    """A tensor some of whose rows are others: row `indices[i]` is row i of `rows`."""

    source: sources.Source
    rows: sources.Source
    indices: tuple[int, ...]
    kind: Literal["rows_replaced"] = "rows_replaced"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The tensor and its new rows."""
        return (self.source, self.rows)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        columns = _columns(self.shape)
        fresh = np.array(reader.values(self.source, start, stop, dtype))
        for number, index in enumerate(self.indices):
            low, high = max(index * columns, start), min((index + 1) * columns, stop)
            if low < high:
                shift = (number - index) * columns
                fresh[low - start : high - start] = self.rows.read(low + shift, high + shift, reader, dtype)
        return fresh


@dataclass(frozen=True, slots=True)
class Run:
    """The elements of a tensor from `offset` on, as a tensor of another shape: whole rows, or one expert of many."""

    source: sources.Source
    offset: int
    shape: tuple[int, ...]
    kind: Literal["run"] = "run"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The whole tensor."""
        return (self.source,)

    @property
    def dtype(self) -> str:
        """The whole tensor's."""
        return self.source.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop)."""
        return self.source.extents(self.offset + start, self.offset + stop)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        return self.source.read(self.offset + start, self.offset + stop, reader, dtype)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype to compute in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _columns(shape: tuple[int, ...]) -> int:
    """Elements that share a first index."""
    return math.prod(shape[1:])


def _times(values: Array, start: int, columns: int, factors: Array, axis: int) -> Array:
    """A fresh array of a range's values, each multiplied by its row's or column's factor."""
    first, last = start // columns, -(-(start + values.size) // columns)
    rows = np.zeros((last - first) * columns, values.dtype)
    begin = start - first * columns
    rows[begin : begin + values.size] = values
    table = rows.reshape(-1, columns)
    table *= factors[first:last, None] if axis == 0 else factors
    return rows[begin : begin + values.size]
