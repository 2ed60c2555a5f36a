"""Tells the kernel which bytes come next, and, where a merge is larger than memory, which are done with.

Hints only: results never depend on them, and systems without the calls go without.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from cuvee.engine.files import ShardFiles
from cuvee.planning.ops import TensorOp
from cuvee.tensors import disk
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import Extent

_AHEAD = 128 << 20
_BEHIND = 256 << 20  # bytes written that may still be on their way to the disk


class Prefetcher:
    """Keeps about 128 MiB of the ops to come on their way from the disk."""

    def __init__(self, ops: Sequence[TensorOp], reader: FileReader, output: ShardFiles, *, release: bool) -> None:
        self._reader = reader
        self._output = output
        self._release = release
        self._written: deque[TensorOp] = deque()
        self._dirty = 0
        self._coming = iter(ops)
        self._ahead = 0
        self._lock = threading.Lock()

    def begin(self, op: TensorOp) -> None:
        """An op starts: asks for the bytes of as many later ones as fit the window."""
        extents: list[Extent] = []
        with self._lock:
            self._ahead -= op.bytes_read
            while self._ahead < _AHEAD and (coming := next(self._coming, None)) is not None:
                self._ahead += coming.bytes_read
                extents.extend(_extents(coming))
        for extent in extents:
            disk.will_need(self._reader.descriptor(extent.file), extent.offset, min(extent.count, _AHEAD))

    def done(self, op: TensorOp) -> None:
        """An op is finished: its bytes may leave the kernel's cache if the merge is larger than memory."""
        if self._release:
            for extent in _extents(op):
                disk.release(self._reader.descriptor(extent.file), extent.offset, extent.count)
            self._release_written(op)

    def _release_written(self, op: TensorOp) -> None:
        """Sets the writing to the disk of `op` going, and drops what was set going a while ago and is clean by now."""
        self._release_outputs(op)
        clean: list[TensorOp] = []
        with self._lock:
            self._written.append(op)
            self._dirty += op.nbytes
            while self._dirty > _BEHIND:
                clean.append(self._written.popleft())
                self._dirty -= clean[-1].nbytes
        for earlier in clean:
            self._release_outputs(earlier)

    def _release_outputs(self, op: TensorOp) -> None:
        for output in op.outputs:
            self._output.release(output.shard, output.offset, output.nbytes)


def outgrows_memory(ops: Iterable[TensorOp]) -> bool:
    """Whether reading these ops would push everything else out of this machine's page cache."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system: no hints there anyway
        return False
    return sum(op.bytes_read for op in ops) > memory // 2


def _extents(op: TensorOp) -> Iterable[Extent]:
    return (extent for source in op.sources for extent in source.extents(0, math.prod(source.shape)))
