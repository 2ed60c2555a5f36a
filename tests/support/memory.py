"""A checkpoint that lies in memory: the same seam as a directory or the Hub, and fast enough to be fuzzed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cuvee.errors import CheckpointError
from cuvee.tensors.location import Location


class Memory(Location):
    """Files by name."""

    def __init__(self, files: Mapping[str, bytes], identity: str = "memory") -> None:
        self._files = dict(files)
        self.identity = identity

    def sizes(self) -> dict[str, int]:
        """How long each is."""
        return {name: len(data) for name, data in self._files.items()}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """A part of one."""
        return self._files[name][start:stop]

    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """Refused: there is no path."""
        raise CheckpointError(f"{name} is in memory only")
