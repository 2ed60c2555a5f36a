"""A part of a tensor, and a tensor under another shape: how fused, split and stacked layouts meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources
from cuvee.tensors.dtypes import itemsize


@dataclass(frozen=True, slots=True)
class Part:
    """Positions [begin, end) of a tensor along `axis`: how fused layouts become split ones."""

    whole: sources.Source
    axis: int
    begin: int
    end: int
    kind: Literal["part"] = "part"

    @property
    def children(self) -> tuple[sources.Source, ...]:
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

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop)."""
        for lower, upper, _ in self._runs(start, stop):
            yield from self.whole.extents(lower, upper)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
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

    flat: sources.Source
    shape: tuple[int, ...]
    kind: Literal["reshaped"] = "reshaped"

    @property
    def children(self) -> tuple[sources.Source, ...]:
        """What is reshaped."""
        return (self.flat,)

    @property
    def dtype(self) -> str:
        """The child's."""
        return self.flat.dtype

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop)."""
        return self.flat.extents(start, stop)

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) as a fresh array of `dtype`."""
        return self.flat.read(start, stop, reader, dtype)


def part_of(source: sources.Source, axis: int, begin: int, end: int) -> sources.Source:
    """Positions [begin, end) of `source` along `axis`, as one stored tensor where the bytes lie together."""
    if (begin, end) == (0, source.shape[axis]):
        return source
    if isinstance(source, sources.Stored) and math.prod(source.shape[:axis]) == 1:
        inner = math.prod(source.shape[axis + 1 :])
        shape = (*source.shape[:axis], end - begin, *source.shape[axis + 1 :])
        return replace(source, offset=source.offset + begin * inner * itemsize(source.dtype), shape=shape)
    return Part(source, axis, begin, end)


def reshape(source: sources.Source, shape: tuple[int, ...]) -> sources.Source:
    """`source` under another shape of as many elements."""
    if source.shape == shape:
        return source
    return replace(source, shape=shape) if isinstance(source, (sources.Stored, Reshaped)) else Reshaped(source, shape)
