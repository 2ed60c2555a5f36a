"""A block: what a method sees of one tensor at a time. Knows no files, devices or names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Array = Any
"""A NumPy array or a torch tensor, float32 (float64 where an input or the output is)."""


@dataclass(frozen=True)
class Block:
    """The same range of one tensor, of every model.

    Attributes:
        arrays: one array a model, all of one shape: `[n]` for methods of scope `elements`, `[rows, columns]` for `rows`
            and `matrix`. Never to be written to.
        start: index of the block's first element in what the method was prepared for: the flattened tensor, or all of
            the model's tensors end to end.
        key: 64 bits derived from the seed and the tensor's name, for counter-based randomness.

    """

    arrays: tuple[Array, ...]
    start: int = 0
    key: int = 0

    def __iter__(self) -> Iterator[Array]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Array:
        return self.arrays[index]

    def with_arrays(self, arrays: tuple[Array, ...]) -> Block:
        """The same range with other values (after a stage)."""
        return Block(arrays, self.start, self.key)
