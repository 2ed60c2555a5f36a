"""Row maps: for every row of an output, which row of a table it takes, as text compact enough for a plan.

Where a map of 150 000 tokens is mostly runs that count upwards, its differences compress to a few kilobytes; their high
bytes, which are written together, do so in any order. What rows mean is not known here.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Index = np.ndarray[Any, np.dtype[np.int32]]
ABSENT = -1
"""In a map: this table gives nothing to this row."""
SEVERAL = -2
"""In what `givers` tells: more than one table gives to this row."""
_LEVEL = 1  # higher ones take five times as long for rows in a random order, and save a tenth


@lru_cache(maxsize=8)  # models of one vocabulary have the same maps
def _encoded(raw: bytes) -> str:
    steps = np.diff(np.frombuffer(raw, "<i4"), prepend=np.int32(0)).astype("<i4")
    planes = steps.view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), _LEVEL)).decode()


def encode_map(index: Index) -> str:
    """The map as text, the same text for the same map on every machine."""
    return _encoded(index.astype("<i4").tobytes())


@lru_cache(maxsize=64)
def decode_map(text: str) -> Index:
    """The map that `encode_map` wrote; shared, so it cannot be written to."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(4, -1)
    steps = np.ascontiguousarray(planes.T).view("<i4").reshape(-1)
    index = np.cumsum(steps, dtype=np.int32)
    index.flags.writeable = False
    return index


@dataclass(frozen=True)
class Givers:
    """What the maps of several tables say together.

    Attributes:
        table: which table gives to each row, or `ABSENT`, or `SEVERAL`.
        row: which of its rows.
        changes: the rows to which another table gives than to the row before.
        jumps: those, and the rows that are not the table's next.

    """

    table: np.ndarray[Any, Any]
    row: Index
    changes: Index
    jumps: Index

    def alone(self, first: int, last: int) -> int | None:
        """The one table that gives to all rows [first, last), or None."""
        number = int(self.table[first])
        return number if number >= 0 and _none_within(self.changes, first, last) else None

    def in_a_row(self, first: int, last: int) -> bool:
        """Whether rows [first, last) are given by one table, one after another."""
        return _none_within(self.jumps, first, last)


def _none_within(places: Index, first: int, last: int) -> bool:
    """Whether none of the sorted places lies in (first, last)."""
    begin = int(places.searchsorted(first, "right"))
    return begin == places.size or int(places[begin]) >= last


@lru_cache(maxsize=16)
def givers(texts: tuple[str, ...]) -> Givers:
    """Who gives to each row: looked up once for a tensor, not for each of its blocks."""
    maps = [decode_map(text) for text in texts]
    table = np.full(maps[0].size, ABSENT, np.int16)
    row = np.zeros(maps[0].size, np.int32)
    for number, index in enumerate(maps):
        has = index >= 0
        table[has] = np.where(table[has] == ABSENT, number, SEVERAL)
        row[has] = index[has]
    other = np.diff(table) != 0
    changes, jumps = ((np.flatnonzero(found) + 1).astype(np.int32) for found in (other, other | (np.diff(row) != 1)))
    return Givers(table, row, changes, jumps)


def runs(index: Index) -> list[tuple[int, int, int]]:
    """(position, first row, rows) for every stretch of a map in which rows count upwards by one."""
    if index.size == 0:
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(index) != 1) + 1))
    lengths = np.diff(starts, append=index.size)
    return list(zip(starts.tolist(), index[starts].tolist(), lengths.tolist(), strict=True))
