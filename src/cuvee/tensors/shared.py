"""Reads the sources of one tensor together, so that what several of them are made of is read once for each range.

Five adapters on one base are five sources that share the base's bytes; their own small factors are kept while the
tensor is worked on. What sources mean is not known here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from cuvee.tensors.deltas import LowRank
from cuvee.tensors.rowmaps import Index
from cuvee.tensors.sources import Reader, Source, Stored
from cuvee.tensors.updates import Added

Array = np.ndarray[Any, Any]


class SharedReader:
    """A `Reader` for the sources of one tensor; it may serve several threads, each with a range of its own."""

    def __init__(self, reader: Reader, sources: Sequence[Source]) -> None:
        self._reader = reader
        self._sources = sources
        # A node's hash is that of all below it: taken once here, and never again while blocks are read.
        self._numbers: dict[int, int] = {}  # by identity, which nodes keep as long as `sources` are held
        counts: Counter[Source] = Counter()
        equal: dict[Source, int] = {}
        for node in (node for source in sources for node in _nodes(source)):
            counts[node] += 1
            self._numbers[id(node)] = equal.setdefault(node, len(equal))
        self._repeated = frozenset(equal[node] for node, count in counts.items() if count > 1)
        self._kept: dict[Hashable, Array] = {}
        self._lock = threading.RLock()  # making one thing to keep may ask for another
        self._local = threading.local()

    def together(self, start: int, stop: int, dtype: np.dtype[Any]) -> Iterator[Array]:
        """Elements [start, stop) of each source in turn, as fresh arrays."""
        self._local.seen = {}
        try:
            for source in self._sources:
                shared = self._number(source) in self._repeated
                yield (
                    np.array(self.values(source, start, stop, dtype))
                    if shared
                    else source.read(start, stop, self, dtype)
                )
        finally:
            self._local.seen = None

    def values(self, source: Source, start: int, stop: int, dtype: np.dtype[Any]) -> Array:
        """Elements [start, stop) of a source, not to be changed."""
        seen = getattr(self._local, "seen", None)
        number = self._number(source)
        if seen is None or number not in self._repeated:
            return source.read(start, stop, self, dtype)
        key = (number, start, stop, dtype)
        if key not in seen:
            seen[key] = source.read(start, stop, self, dtype)
        found: Array = seen[key]
        return found

    def keep(self, source: Source, what: Hashable, make: Callable[[], Array]) -> Array:
        """What `make` gave when it was first called about `what` of this source."""
        key = (self._number(source), what)
        if (known := self._kept.get(key)) is not None:
            return known
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def _number(self, source: Source) -> Hashable:
        """The same for equal nodes."""
        return self._numbers.get(id(source), source)

    def read(self, file: str, offset: int, count: int) -> Array:
        """`count` bytes as uint8."""
        return self._reader.read(file, offset, count)

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        """Fills `target`."""
        self._reader.read_into(file, offset, target)

    def gather(self, file: str, offset: int, width: int, rows: Index) -> Array:
        """Those rows of a table at `offset`, `width` bytes each."""
        return self._reader.gather(file, offset, width, rows)


def change_of(source: Source, base: Source) -> Source | None:
    """What `source` adds to `base`, if that is a source of its own: the difference without rounding."""
    if not isinstance(source, Added) or source.scale != 1.0:
        return None
    if source.base == base:
        return source.delta
    below = change_of(source.base, base)
    return None if below is None else Added(below, source.delta)


def low_rank_parts(source: Source) -> tuple[Source, tuple[LowRank, ...]]:
    """What `source` is without the low-rank updates on it, and those; `source` and none if it has others on it."""
    updates: list[LowRank] = []
    root = source
    while isinstance(root, Added) and root.scale == 1.0 and isinstance(root.delta, LowRank):
        updates.append(root.delta)
        root = root.base
    return root, tuple(reversed(updates))


def _nodes(source: Source) -> Iterator[Source]:
    yield source
    if not isinstance(source, Stored):
        for child in source.children:
            yield from _nodes(child)
