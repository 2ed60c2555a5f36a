"""Sources: expressions for where a tensor's values come from, evaluated for a range, never a tensor in memory.

Every node answers the same few questions: `shape`, `dtype`, `children`, `extents` (the bytes that a range touches) and
`read` (the range's values). Plans hold them, so they are frozen and serialise to JSON. What a tensor means is not known
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union

import numpy as np

from cuvee.tensors.dtypes import itemsize, numpy_dtype, promote
from cuvee.tensors.rowmaps import SEVERAL, Index, decode_map, givers, runs


class Reader(Protocol):
    """Gives byte ranges of the files that stored pieces name."""

    def read(self, file: str, offset: int, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes as uint8, in a buffer of the calling thread that the next read overwrites."""
        ...

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        """Fills `target`."""
        ...

    def gather(self, file: str, offset: int, width: int, rows: Index) -> np.ndarray[Any, Any]:
        """Those rows of a table at `offset`, `width` bytes each, one after another as `read` gives them."""
        ...

    def once(self, key: Hashable, compute: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """What `compute` gives, computed once for a key however many threads ask."""
        ...


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file."""

    file: str
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that lies in a file: row-major, `dtype` a safetensors code, `offset` in bytes from the file's start."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    kind: Literal["stored"] = "stored"

    @property
    def children(self) -> tuple[Source, ...]:
        """None: this is a leaf."""
        return ()

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of elements [start, stop)."""
        size = itemsize(self.dtype)
        yield Extent(self.file, self.offset + start * size, (stop - start) * size)

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        own = numpy_dtype(self.dtype)
        offset = self.offset + start * own.itemsize
        if own == dtype:
            fresh = np.empty(stop - start, dtype)
            reader.read_into(self.file, offset, memoryview(fresh.view(np.uint8)))  # type: ignore[arg-type]
            return fresh
        return reader.read(self.file, offset, (stop - start) * own.itemsize).view(own).astype(dtype)


@dataclass(frozen=True, slots=True)
class Joined:
    """Pieces laid side by side along `axis`: how split layouts become fused ones."""

    pieces: tuple[Source, ...]
    axis: int
    kind: Literal["joined"] = "joined"

    @property
    def children(self) -> tuple[Source, ...]:
        """The pieces."""
        return self.pieces

    @property
    def shape(self) -> tuple[int, ...]:
        """The joined shape."""
        first = self.pieces[0].shape
        length = sum(piece.shape[self.axis] for piece in self.pieces)
        return (*first[: self.axis], length, *first[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """The narrowest dtype that holds every piece."""
        return promote(tuple(piece.dtype for piece in self.pieces))

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of elements [start, stop)."""
        for piece, _, lower, upper in self._runs(start, stop):
            yield from piece.extents(lower, upper)

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        fresh = np.empty(stop - start, dtype)
        for piece, position, lower, upper in self._runs(start, stop):
            begin = position - start
            fresh[begin : begin + upper - lower] = piece.read(lower, upper, reader, dtype)
        return fresh

    def _runs(self, start: int, stop: int) -> Iterator[tuple[Source, int, int, int]]:
        """(piece, position in the whole, piece's start, piece's stop) for every run that [start, stop) touches."""
        widths = [math.prod(piece.shape[self.axis :]) for piece in self.pieces]
        row = sum(widths)
        if row == 0:
            return
        for outer in range(start // row, -(-stop // row)):
            position = outer * row
            for piece, width in zip(self.pieces, widths, strict=True):
                lower, upper = max(start, position), min(stop, position + width)
                if lower < upper:
                    shift = outer * width - position
                    yield piece, lower, lower + shift, upper + shift
                position += width


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of several tables in a new order: a tensor as another vocabulary wants it.

    An output row is the mean of the rows that the tables give it (one as a rule, and then bit for bit), and zero where
    none does. `maps` (see `rowmaps`) says for each table which of its rows goes where. `axis` is the one that rows lie
    along; those before it are of length 1.
    """

    tables: tuple[Source, ...]
    maps: tuple[str, ...]
    length: int
    axis: int = 0
    kind: Literal["rows"] = "rows"

    @property
    def children(self) -> tuple[Source, ...]:
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

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes that elements [start, stop) lie among: of each table, all from the first row used to the last."""
        width = self.width
        for table, text in zip(self.tables, self.maps, strict=True):
            index = decode_map(text)[start // width : -(-stop // width)]
            used = index[index >= 0]
            if used.size:
                yield from table.extents(int(used.min()) * width, (int(used.max()) + 1) * width)

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        if start == stop:
            return np.empty(0, dtype)
        width = self.width
        first, last = start // width, -(-stop // width)
        tables, rows = givers(self.maps)
        giver, row = tables[first:last], rows[first:last]
        begin, end = start - first * width, stop - first * width
        if giver[0] >= 0 and (giver == giver[0]).all():
            table = self.tables[int(giver[0])]
            if (np.diff(row) == 1).all():
                shift = int(row[0]) * width
                return table.read(shift + begin, shift + end, reader, dtype)
            return np.ravel(_gather(table, row, width, reader, dtype))[begin:end]
        fresh = np.zeros((last - first, width), dtype)
        for number, table in enumerate(self.tables):
            alone = np.flatnonzero(giver == number)
            if alone.size:
                fresh[alone] = _gather(table, row[alone], width, reader, dtype)
        several = np.flatnonzero(giver == SEVERAL)
        if several.size:
            fresh[several] = self._means(first + several, reader)
        return fresh.reshape(-1)[begin:end]

    def _means(self, places: np.ndarray[Any, Any], reader: Reader) -> np.ndarray[Any, Any]:
        """The rows, in float64, that several tables give to."""
        sums, counts = np.zeros((places.size, self.width), np.float64), np.zeros((places.size, 1))
        for table, text in zip(self.tables, self.maps, strict=True):
            own = decode_map(text)[places]
            among = np.flatnonzero(own >= 0)
            if among.size:
                sums[among] += _gather(table, own[among], self.width, reader, np.dtype(np.float64))
                counts[among] += 1
        return np.asarray(sums / counts)


def _gather(table: Source, rows: Index, width: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Those rows of a table, `[rows, width]`; of a stored one at once, of others run by run."""
    if isinstance(table, Stored):
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
    """The mean over the first `count` rows of a tensor, as a table of one row; summed in float64 once a run."""

    table: Source
    count: int
    axis: int = 0
    kind: Literal["row_mean"] = "row_mean"

    @property
    def children(self) -> tuple[Source, ...]:
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

    def extents(self, start: int, stop: int) -> Iterator[Extent]:  # noqa: ARG002 - a mean touches everything
        """The bytes of all rows."""
        yield from self.table.extents(0, self.count * math.prod(self.shape))

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) of the mean as a fresh array of `dtype`."""
        return reader.once(self, lambda: self._mean(reader))[start:stop].astype(dtype)

    def _mean(self, reader: Reader) -> np.ndarray[Any, Any]:
        width = math.prod(self.shape)
        step = max(_MEAN_ELEMENTS // width, 1)
        total = np.zeros(width, np.float64)
        for first in range(0, self.count, step):
            last = min(first + step, self.count)
            values = self.table.read(first * width, last * width, reader, np.dtype(np.float64))
            total += values.reshape(-1, width).sum(axis=0)
        return total / max(self.count, 1)


_MEAN_ELEMENTS = 1 << 17
Source = Union[Stored, Joined, Rows, RowMean]  # noqa: UP007 - named in quotes above, where `|` would not be evaluated
"""Any node; `kind` tells them apart in JSON. Low-rank updates, dequantisation and merges of merges
become further nodes."""


def stored_pieces(source: Source) -> Iterator[Stored]:
    """Every stored tensor that a source is made of."""
    if isinstance(source, Stored):
        yield source
    for child in source.children:
        yield from stored_pieces(child)
