"""Float8 weights and their scales as one tensor of numbers, worked out for the range that is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cuvee.tensors import sources
from cuvee.tensors.scales import rows_of_scales, scale_values, widen


@dataclass(frozen=True, slots=True)
class Dequantised:
    """Float8 values times the scale of their block; `scales` are two-dimensional, `block` as in `tensors.scales`."""

    values: sources.Stored
    scales: sources.Stored
    block: tuple[int, ...]
    kind: Literal["dequantised"] = "dequantised"

    @property
    def children(self) -> tuple[sources.Source, ...]:
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

    def extents(self, start: int, stop: int) -> Iterator[sources.Extent]:
        """The bytes of elements [start, stop)."""
        if start < stop:
            yield from self.values.extents(start, stop)
            yield from self.scales.extents(*self._scales(start, stop))

    def read(self, start: int, stop: int, reader: sources.Reader, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
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
