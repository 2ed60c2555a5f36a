"""Sources: expressions for where a tensor's values come from, evaluated for a range, never a tensor in memory.

Every node answers the same few questions: `shape`, `dtype`, `children`, `extents` (the bytes that a range touches) and
`read` (the range's values). Plans hold them, so they are frozen and serialise to JSON. What a tensor means is not known
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Union

import numpy as np

from cuvee.tensors.dtypes import itemsize, numpy_dtype, promote
from cuvee.tensors.rowmaps import Index


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

    def values(self, source: Source, start: int, stop: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) of a source, not to be changed: other sources may be made of them too."""
        ...

    def keep(self, source: Source, what: Hashable, make: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """What `make` gives, perhaps kept from an earlier call about `what` of this source; not to be changed."""
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
        widths = [math.prod(piece.shape[self.axis :]) for piece in self.pieces]
        row = sum(widths)
        if row and start % row == 0 == stop % row:
            table, position = fresh.reshape(-1, row), 0
            for piece, width in zip(self.pieces, widths, strict=True):
                if not width:
                    continue
                values = piece.read(start // row * width, stop // row * width, reader, dtype)
                table[:, position : position + width] = values.reshape(-1, width)
                position += width
            return fresh
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
class Constant:
    """One value all over, known without reading a file."""

    value: int | float
    dtype: str
    shape: tuple[int, ...]
    kind: Literal["constant"] = "constant"

    @property
    def children(self) -> tuple[Source, ...]:
        """None: this is a leaf."""
        return ()

    def extents(self, start: int, stop: int) -> Iterator[Extent]:  # noqa: ARG002 - every node has it
        """None."""
        return iter(())

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:  # noqa: ARG002
        """Elements [start, stop) as a fresh array of `dtype`."""
        return np.full(stop - start, self.value, dtype)


# These modules need the names above, and `Source` when plans are read from JSON, so they come last.
from cuvee.tensors.deltas import Hadamard, Kronecker, LowRank  # noqa: E402
from cuvee.tensors.dequantised import Dequantised  # noqa: E402
from cuvee.tensors.parts import Part, Reshaped  # noqa: E402
from cuvee.tensors.rows import RowMean, Rows  # noqa: E402
from cuvee.tensors.transposed import Transposed  # noqa: E402
from cuvee.tensors.updates import Added, Renormed, RowsReplaced, Run, Scaled  # noqa: E402

Source = Union[  # noqa: UP007 - named in quotes above, where `|` would not be evaluated
    Stored, Joined, Constant, Rows, RowMean, Part, Reshaped, Transposed, Dequantised,
    LowRank, Hadamard, Kronecker, Added, Scaled, Renormed, RowsReplaced, Run,
]  # fmt: skip
"""Any node; `kind` tells them apart in JSON."""


def stored_pieces(source: Source) -> Iterator[Stored]:
    """Every stored tensor that a source is made of."""
    if isinstance(source, Stored):
        yield source
    for child in source.children:
        yield from stored_pieces(child)


def spelled(source: Source) -> str:
    """What a source is made of, without the names of files: equal texts mean equal expressions of equal places."""
    if isinstance(source, Stored):
        return str(source.offset)
    values = ((field.name, getattr(source, field.name)) for field in fields(source))
    plain = ",".join(f"{name}={value!r}" for name, value in values if not _is_source(value))
    return f"{plain}({','.join(map(spelled, source.children))})"


def _is_source(value: object) -> bool:
    first = value[0] if isinstance(value, tuple) and value else value
    return hasattr(first, "children")


def is_verbatim(source: Source) -> bool:
    """Whether copying a source is exact: its values are stored, or it rounds them to their dtype once by itself."""
    kinds = (Stored, Joined, Constant, Part, Reshaped, Transposed, Dequantised)
    return isinstance(source, kinds) and all(map(is_verbatim, source.children))


def grain_of(source: Source) -> int:
    """Ranges of a source that start at multiples of this many elements cost least."""
    own = source.grain if isinstance(source, (LowRank, Transposed)) else 1
    return max((own, *map(grain_of, source.children)))
