"""Reads byte ranges of many files from many threads: open descriptors are shared, buffers belong to a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.tensors import disk
from cuvee.tensors.rowmaps import Index, runs
from cuvee.tensors.sources import Source

if TYPE_CHECKING:
    from typing_extensions import Self

_DENSE = 4  # rows that are at least a quarter of those between the first and the last are read as one span


class FileReader:
    """A `Reader` over local files.

    `locate` gives the local path of a file as plans name it; the default takes the name for the path.
    """

    def __init__(self, locate: Callable[[str], Path] = Path) -> None:
        self._locate = locate
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def read(self, file: str, offset: int, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes as uint8, in this thread's buffer: valid until the thread's next read."""
        part = self._buffer(count)
        self.read_into(file, offset, memoryview(part))  # type: ignore[arg-type]
        return part

    def _buffer(self, count: int) -> np.ndarray[Any, Any]:
        """The first `count` bytes of this thread's buffer, which grows where need be."""
        buffer: np.ndarray[Any, Any] | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.size < count:
            buffer = self._local.buffer = np.empty(max(count, 1 << 19), np.uint8)
        return buffer[:count]

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        """Fills `target` from the file's bytes at `offset`."""
        disk.read_into(self.descriptor(file), target, offset, file)

    def gather(self, file: str, offset: int, width: int, rows: Index) -> np.ndarray[Any, Any]:
        """Rows of `width` bytes of a table at `offset`, one after another, in this thread's buffer."""
        first, last = int(rows[0]), int(rows[-1])
        if last - first < _DENSE * rows.size and (np.diff(rows) > 0).all():
            # One call for all, and the rows between read in vain, take less time than a call for each.
            span = self.read(file, offset + first * width, (last - first + 1) * width)
            return span.reshape(-1, width)[rows - first].reshape(-1)
        buffer = self._buffer(rows.size * width)
        disk.gather(self.descriptor(file), memoryview(buffer), offset, width, runs(rows), file)  # type: ignore[arg-type]
        return buffer

    def values(self, source: Source, start: int, stop: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) of a source."""
        return source.read(start, stop, self, dtype)

    def keep(
        self,
        source: Source,  # noqa: ARG002 - other readers keep
        what: Hashable,  # noqa: ARG002
        make: Callable[[], np.ndarray[Any, Any]],
    ) -> np.ndarray[Any, Any]:
        """What `make` gives; nothing is kept here."""
        return make()

    def descriptor(self, file: str) -> int:
        """The shared descriptor of a file."""
        known = self._descriptors.get(file)
        if known is not None:
            return known
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = disk.open_to_read(self._locate(file))
            return self._descriptors[file]

    def close(self) -> None:
        """Closes every descriptor."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
