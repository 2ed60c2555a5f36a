"""Sources: expressions for where a tensor's values come from, evaluated for a range, never a tensor in memory.

Every node answers the same few questions: `shape`, `dtype`, `children`, `extents` (the bytes that a range touches) and
`read` (the range's values). Plans hold them, so they are frozen and serialise to JSON. What a tensor means is not known
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Union

import numpy as np

from cuvee.tensors.dtypes import itemsize, numpy_dtype, promote
from cuvee.tensors.scales import rows_of_scales, scale_values, widen


class Reader(Protocol):
    """Gives byte ranges of the files that stored pieces name."""

    def read(self, file: str, offset: int, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes as uint8, in a buffer of the calling thread that the next read overwrites."""
        ...

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        """Fills `target`."""
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
class Part:
    """Positions [begin, end) of a tensor along `axis`: how fused layouts become split ones."""

    whole: Source
    axis: int
    begin: int
    end: int
    kind: Literal["part"] = "part"

    @property
    def children(self) -> tuple[Source, ...]:
        """The tensor this is a part of."""
        return (self.whole,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole's shape, shorter along the axis."""
        whole = self.whole.shape
        return (*whole[: self.axis], self.end - self.begin, *whole[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """The whole's."""
        return self.whole.dtype

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of elements [start, stop)."""
        for lower, upper, _ in self._runs(start, stop):
            yield from self.whole.extents(lower, upper)

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        fresh = np.empty(stop - start, dtype)
        for lower, upper, position in self._runs(start, stop):
            begin = position - start
            fresh[begin : begin + upper - lower] = self.whole.read(lower, upper, reader, dtype)
        return fresh

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(start in the whole, stop in the whole, start in the part) for every run that [start, stop) touches."""
        whole = self.whole.shape
        inner = math.prod(whole[self.axis + 1 :])
        stride, width = whole[self.axis] * inner, (self.end - self.begin) * inner
        if width == 0:
            return
        for outer in range(start // width, -(-stop // width)):
            lower, upper = max(start, outer * width), min(stop, (outer + 1) * width)
            shift = outer * stride + self.begin * inner - outer * width
            yield lower + shift, upper + shift, lower


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The same elements under another shape: how a stack of experts is a join of single ones."""

    flat: Source
    shape: tuple[int, ...]
    kind: Literal["reshaped"] = "reshaped"

    @property
    def children(self) -> tuple[Source, ...]:
        """What is reshaped."""
        return (self.flat,)

    @property
    def dtype(self) -> str:
        """The child's."""
        return self.flat.dtype

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of elements [start, stop)."""
        return self.flat.extents(start, stop)

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        return self.flat.read(start, stop, reader, dtype)


@dataclass(frozen=True, slots=True)
class Dequantised:
    """Float8 values times the scale of their block; `scales` are two-dimensional, `block` as in `tensors.scales`."""

    values: Stored
    scales: Stored
    block: tuple[int, ...]
    kind: Literal["dequantised"] = "dequantised"

    @property
    def children(self) -> tuple[Source, ...]:
        """Values and scales."""
        return (self.values, self.scales)

    @property
    def shape(self) -> tuple[int, ...]:
        """The values' shape."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """What such weights are trained and served in; wide enough for every float8."""
        return "BF16"

    def extents(self, start: int, stop: int) -> Iterator[Extent]:
        """The bytes of elements [start, stop)."""
        if start < stop:
            yield from self.values.extents(start, stop)
            yield from self.scales.extents(*self._scales(start, stop))

    def read(self, start: int, stop: int, reader: Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`: the exact products, rounded once."""
        if start >= stop:
            return np.empty(0, dtype)
        values = widen(reader.read(self.values.file, self.values.offset + start, stop - start), self.values.dtype)
        scales = self.scales.read(*self._scales(start, stop), reader, np.dtype(np.float32))
        grid = scales.reshape(-1, self.scales.shape[-1])
        return scale_values(values, grid, start, self._matrix(self.values.shape), self._matrix(self.block), dtype)

    def _scales(self, start: int, stop: int) -> tuple[int, int]:
        """Which elements of the scales are needed."""
        shape, block = self._matrix(self.values.shape), self._matrix(self.block)
        first, last = rows_of_scales(start, stop, shape, block)
        return first * self.scales.shape[-1], last * self.scales.shape[-1]

    @staticmethod
    def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape of two dimensions or more."""
        return (1,) * (2 - len(shape)) + shape


@dataclass(frozen=True, slots=True)
class Constant:
    """One value all over, known without reading a file."""

    value: int
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


def part_of(source: Source, axis: int, begin: int, end: int) -> Source:
    """Positions [begin, end) of `source` along `axis`, as one stored tensor where the bytes lie together."""
    if (begin, end) == (0, source.shape[axis]):
        return source
    if isinstance(source, Stored) and math.prod(source.shape[:axis]) == 1:
        inner = math.prod(source.shape[axis + 1 :])
        shape = (*source.shape[:axis], end - begin, *source.shape[axis + 1 :])
        return replace(source, offset=source.offset + begin * inner * itemsize(source.dtype), shape=shape)
    return Part(source, axis, begin, end)


def reshape(source: Source, shape: tuple[int, ...]) -> Source:
    """`source` under another shape of as many elements."""
    if source.shape == shape:
        return source
    return replace(source, shape=shape) if isinstance(source, (Stored, Reshaped)) else Reshaped(source, shape)


Source = Union[Stored, Joined, Part, Reshaped, Dequantised, Constant]  # noqa: UP007 - in quotes above, where `|` is not evaluated
"""Any node; `kind` tells them apart in JSON. Vocabulary rows, low-rank updates and merges of merges become further
nodes."""


def stored_pieces(source: Source) -> Iterator[Stored]:
    """Every stored tensor that a source is made of."""
    if isinstance(source, Stored):
        yield source
    for child in source.children:
        yield from stored_pieces(child)
