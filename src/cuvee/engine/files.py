"""The output's shard files: created at full size, then filled at known offsets by any thread or process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.planning.ops import Shard
from cuvee.tensors import disk
from cuvee.tensors.sources import Extent

if TYPE_CHECKING:
    from typing_extensions import Self


def create_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Creates every shard file that is not there yet with its header, at its full size."""
    for shard in shards:
        if not (folder / shard.name).exists():
            disk.make_directory((folder / shard.name).parent)
            disk.preallocate(folder / shard.name, shard_header(shard), shard.size)


def shard_header(shard: Shard) -> bytes:
    """What the file starts with."""
    text = shard.header.encode()
    return len(text).to_bytes(8, "little") + text


class ShardFiles:
    """Open shard files to write into; safe to share between threads."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [folder / shard.name for shard in shards]
        self._descriptors = [disk.open_to_write(path) for path in self._paths]

    def write(self, shard: int, offset: int, array: np.ndarray[Any, Any]) -> None:
        """Writes an array's bytes at `offset`."""
        raw = memoryview(np.ascontiguousarray(array).view(np.uint8))  # type: ignore[arg-type]
        disk.write_at(self._descriptors[shard], raw, offset, self._paths[shard])

    def copy_from(self, source: int, extent: Extent, shard: int, offset: int) -> None:
        """Copies a run of bytes from the descriptor `source`."""
        target, path = self._descriptors[shard], self._paths[shard]
        disk.copy_range(source, extent.offset, target, offset, extent.count, extent.file, path)

    def release(self, shard: int, offset: int, count: int) -> None:
        """Tells the kernel that these bytes are not needed again; what is not on the disk yet goes there first."""
        disk.release(self._descriptors[shard], offset, count)

    def close(self) -> None:
        """Closes every file."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
