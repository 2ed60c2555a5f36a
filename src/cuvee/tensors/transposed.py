"""Matrices turned: how expert stacks stored as [experts, in, out] and as [experts, out, in] meet.

A range of a turned matrix is a band of columns: that is what is read, and never the whole matrix at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources
from cuvee.tensors.dtypes import numpy_dtype
from cuvee.tensors.parts import part_of, reshape

Array = np.ndarray[Any, Any]

_KEPT, _KEPT_ELEMENTS = 4, 1 << 19


@dataclass(frozen=True, slots=True)
class Transposed:
    """A tensor with its last two axes in each other's place."""

    source: sources.Source
    kind: Literal["transposed"] = "transposed"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """What is turned."""
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, with the last two lengths swapped."""
        *stack, rows, columns = self.source.shape
        return (*stack, columns, rows)

    @property
    def dtype(self) -> str:
        """The source's."""
        return self.source.dtype

    @property
    def grain(self) -> int:
        """Elements of a row: ranges of whole rows are whole bands of the source."""
        return max(self.source.shape[-2], 1)

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes that elements [start, stop) lie among: of each matrix, from the band's first to its last."""
        rows, columns = self.source.shape[-2:]
        for matrix, first, last in self._bands(start, stop):
            begin = matrix * rows * columns
            yield from self.source.extents(begin + first, begin + (rows - 1) * columns + last)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) as a fresh array of `dtype`."""
        rows, columns = self.source.shape[-2:]
        count = math.prod(self.source.shape[:-2])
        flat = reshape(self.source, (count * rows, columns)) if len(self.source.shape) != 2 else self.source
        fresh = np.empty(stop - start, dtype)
        for matrix, first, last in self._bands(start, stop):
            band = _band(part_of(flat, 0, matrix * rows, (matrix + 1) * rows), first, last, reader, dtype)
            place = (matrix * columns + first) * rows  # of the band's first element in the whole
            lower, upper = max(start, place), min(stop, place + band.size)
            fresh[lower - start : upper - start] = band.reshape(-1)[lower - place : upper - place]
        return fresh

    def _bands(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(Matrix, first column, column after the last) for every matrix that [start, stop) touches."""
        rows, columns = self.source.shape[-2:]
        if start >= stop:
            return
        size = rows * columns
        for matrix in range(start // size, -(-stop // size)):
            lower, upper = max(start - matrix * size, 0), min(stop - matrix * size, size)
            yield matrix, lower // rows, -(-upper // rows)


def transposed(source: sources.Source) -> sources.Source:
    """`source` with its last two axes swapped."""
    return source.source if isinstance(source, Transposed) else Transposed(source)


def _band(matrix: sources.Source, first: int, last: int, reader: sources.Reader, dtype: np.dtype[Any]) -> Array:
    """Columns [first, last) of a matrix as rows, `[last - first, rows]`."""
    rows, columns = matrix.shape
    if isinstance(matrix, sources.Joined) and matrix.axis == 0:
        pieces = [_band(piece, first, last, reader, dtype) for piece in matrix.pieces]
        return np.concatenate(pieces, axis=1)
    if isinstance(matrix, sources.Stored):
        own = numpy_dtype(matrix.dtype)
        bits = _columns(matrix, first, last, reader).view(f"u{own.itemsize}")  # plain integers are turned faster
        return np.ascontiguousarray(bits.T).view(own).astype(dtype)
    parts = (matrix.read(row * columns + first, row * columns + last, reader, dtype) for row in range(rows))
    return np.stack(list(parts), axis=1)


def _columns(matrix: sources.Stored, first: int, last: int, reader: sources.Reader) -> Array:
    """Columns [first, last) as they are stored, `[rows, last - first]`.

    A band is read wider than it is asked for, since a short piece of each row costs as much as a longer one, and the
    thread keeps the last few for the blocks that come next.
    """
    rows, columns = matrix.shape
    wide = max(_KEPT_ELEMENTS // rows, 1)
    begin = first // wide * wide
    if last > begin + wide:
        return _gathered(matrix, first, last, reader)
    nothing = sources.Constant(0, matrix.dtype, ())  # the bands are kept for all matrices of a tensor together
    kept = reader.keep(nothing, ("bands", threading.get_ident()), lambda: np.full(_KEPT, None, object))
    band = next((slot[1] for slot in kept if slot is not None and slot[0] == (matrix, begin)), None)
    if band is None:
        band = _gathered(matrix, begin, min(begin + wide, columns), reader)
        kept[1:] = kept[:-1].copy()
        kept[0] = ((matrix, begin), band)
    return np.asarray(band[:, first - begin : last - begin])


def _gathered(matrix: sources.Stored, first: int, last: int, reader: sources.Reader) -> Array:
    """Columns [first, last) from the file, seen as a table whose rows are as wide as fits."""
    rows, columns = matrix.shape
    own, step = numpy_dtype(matrix.dtype), math.gcd(columns, last - first)
    places = np.arange(rows)[:, None] * (columns // step) + np.arange((last - first) // step)
    raw = reader.gather(matrix.file, matrix.offset + first * own.itemsize, step * own.itemsize, places.reshape(-1))
    return np.array(raw.view(own).reshape(rows, last - first))
