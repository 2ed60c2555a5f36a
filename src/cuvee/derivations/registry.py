"""What a derivation is, and the table of them: functions from whole tensors to tensors of other shapes.

A merge method sees the same range of every model's tensor and gives that range of the result. A derivation asks for
the ranges that it wants, as often as it wants, and gives all its outputs at the end. It knows no files, threads or
names.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from cuvee.numerics.scan import BlockMap

Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., Any])

HELD_ELEMENTS = 1 << 24
"""A derivation may hold so many elements (64 MiB) of a source at once, and then works on one thread; of a larger source
it sees ranges, perhaps on several threads."""
_BUILT_IN = ("factors", "adapters")
_derivations: dict[str, Derivation] = {}


@dataclass(frozen=True)
class Input:
    """One source of a derivation.

    Attributes:
        shape: of the whole tensor.
        read: elements [start, stop) of the flattened tensor, float32 (float64 where it is stored so), fresh.

    """

    shape: tuple[int, ...]
    read: Callable[[int, int], Array]

    def whole(self) -> Array:
        """All of it, in its shape."""
        return self.read(0, math.prod(self.shape)).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop) of a matrix."""
        columns = math.prod(self.shape[1:])
        return self.read(start * columns, stop * columns).reshape(-1, columns)


@dataclass(frozen=True)
class Inputs:
    """What a derivation is given.

    Attributes:
        sources: one for each source of the op, in its order.
        map: runs a function over ranges, perhaps on several threads; results come in order.
        key: 64 bits of the seed and the op's name, for whatever is drawn at random.

    """

    sources: tuple[Input, ...]
    map: BlockMap[Any]
    key: int

    def __getitem__(self, index: int) -> Input:
        return self.sources[index]


Derivation = Callable[..., Sequence[Array]]
"""Called with `Inputs` and the op's parameters by name; gives one array for each output of the op."""


def derivation(name: str) -> Callable[[F], F]:
    """Registers the decorated function as the derivation `name` and gives it back unchanged."""

    def register(function: F) -> F:
        _derivations[name] = function
        return function

    return register


def get_derivation(name: str) -> Derivation:
    """The derivation called `name`."""
    _load()
    return _derivations[name]


@cache
def _load() -> None:
    for module in _BUILT_IN:
        importlib.import_module(f"cuvee.derivations.{module}")
