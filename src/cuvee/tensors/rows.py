"""Tensors made of rows of others, in a new order: what a vocabulary brings to embeddings, heads and biases.

What rows are for is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources
from cuvee.tensors.dtypes import numpy_dtype, promote
from cuvee.tensors.rowmaps import SEVERAL, Index, decode_map, givers, runs

_MEAN_ELEMENTS = 1 << 17


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of several tables in a new order: a tensor as another vocabulary wants it.

    An output row is the mean of the rows that the tables give it (one as a rule, and then bit for bit), and zero where
    none does. `maps` (see `rowmaps`) says for each table which of its rows goes where. `axis` is the one that rows lie
    along; those before it are of length 1.
    """

    tables: tuple[sources.Source, ...]
    maps: tuple[str, ...]
    length: int
    axis: int = 0
    kind: Literal["rows"] = "rows"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The tables."""
        return self.tables

    @property
    def shape(self) -> tuple[int, ...]:
        """A table's shape with the new number of rows."""
        first = self.tables[0].shape
        return (*first[: self.axis], self.length, *first[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """The narrowest dtype that holds every table."""
        return promote(tuple(table.dtype for table in self.tables))

    @property
    def width(self) -> int:
        """Elements of a row."""
        return max(math.prod(self.tables[0].shape[self.axis + 1 :]), 1)

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes that elements [start, stop) lie among: of each table, all from the first row used to the last."""
        width = self.width
        for table, text in zip(self.tables, self.maps, strict=True):
            index = decode_map(text)[start // width : -(-stop // width)]
            used = index[index >= 0]
            if used.size:
                yield from table.extents(int(used.min()) * width, (int(used.max()) + 1) * width)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        if start == stop:
            return np.empty(0, dtype)
        width = self.width
        first, last = start // width, -(-stop // width)
        given = givers(self.maps)
        begin, end = start - first * width, stop - first * width
        if (number := given.alone(first, last)) is not None:
            table = self.tables[number]
            if given.in_a_row(first, last):
                shift = int(given.row[first]) * width
                return table.read(shift + begin, shift + end, reader, dtype)
            return np.ravel(_gather(table, given.row[first:last], width, reader, dtype))[begin:end]
        giver, row = given.table[first:last], given.row[first:last]
        fresh = np.zeros((last - first, width), dtype)
        for number, table in enumerate(self.tables):
            alone = np.flatnonzero(giver == number)
            if alone.size:
                fresh[alone] = _gather(table, row[alone], width, reader, dtype)
        several = np.flatnonzero(giver == SEVERAL)
        if several.size:
            fresh[several] = self._means(first + several, reader)
        return fresh.reshape(-1)[begin:end]

    def _means(self, places: np.ndarray[Any, Any], reader: sources.Reader) -> np.ndarray[Any, Any]:
        """The rows, in float64, that several tables give to."""
        sums, counts = np.zeros((places.size, self.width)), np.zeros((places.size, 1))
        for table, text in zip(self.tables, self.maps, strict=True):
            own = decode_map(text)[places]
            gives = own >= 0
            if not gives.any():
                continue
            rows = _gather(table, own[gives], self.width, reader, np.dtype(np.float64))
            counts[gives] += 1
            if gives.all():
                sums += rows
            else:
                sums[gives] += rows
        sums /= counts
        return sums


def _gather(
    table: sources.Source, rows: Index, width: int, reader: sources.Reader, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Those rows of a table, `[rows, width]`; of a stored one at once, of others run by run."""
    if isinstance(table, sources.Stored):
        own = numpy_dtype(table.dtype)
        raw = reader.gather(table.file, table.offset, width * own.itemsize, rows)
        return raw.view(own).reshape(rows.size, width).astype(dtype)
    fresh = np.empty((rows.size, width), dtype)
    for position, first, count in runs(rows):
        values = table.read(first * width, (first + count) * width, reader, dtype)
        fresh[position : position + count] = values.reshape(count, width)
    return fresh


@dataclass(frozen=True, slots=True)
class RowMean:
    """The mean over the first `count` rows of a tensor, as a table of one row; summed in float64."""

    table: sources.Source
    count: int
    axis: int = 0
    kind: Literal["row_mean"] = "row_mean"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """The tensor."""
        return (self.table,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape with a single row."""
        return (*self.table.shape[: self.axis], 1, *self.table.shape[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """The tensor's."""
        return self.table.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:  # noqa: ARG002 - a mean touches everything
        """The bytes of all rows."""
        yield from self.table.extents(0, self.count * math.prod(self.shape))

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) of the mean as a fresh array of `dtype`."""
        return reader.keep(self, "mean", lambda: self._mean(reader))[start:stop].astype(dtype)

    def _mean(self, reader: sources.Reader) -> np.ndarray[Any, Any]:
        width = math.prod(self.shape)
        step = max(_MEAN_ELEMENTS // width, 1)
        total = np.zeros(width, np.float64)
        for first in range(0, self.count, step):
            last = min(first + step, self.count)
            values = self.table.read(first * width, last * width, reader, np.dtype(np.float64))
            total += values.reshape(-1, width).sum(axis=0)
        return total / max(self.count, 1)
