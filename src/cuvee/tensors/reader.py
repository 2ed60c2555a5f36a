"""Reads byte ranges of many files from many threads: open descriptors are shared, buffers belong to a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from cuvee.tensors import disk
from cuvee.tensors.sources import Source


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
        buffer: np.ndarray[Any, Any] | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.size < count:
            buffer = self._local.buffer = np.empty(max(count, 1 << 19), np.uint8)
        part = buffer[:count]
        self.read_into(file, offset, memoryview(part))  # type: ignore[arg-type]
        return part

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        """Fills `target` from the file's bytes at `offset`."""
        disk.read_into(self.descriptor(file), target, offset, file)

    def values(self, source: Source, start: int, stop: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Elements [start, stop) of a source."""
        return source.read(start, stop, self, dtype)

    def keep(self, key: Hashable, make: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:  # noqa: ARG002
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
