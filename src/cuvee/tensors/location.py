"""Where a checkpoint's files lie: the narrow seam between a directory and the Hub.

Everything above asks only these few questions, so a test's in-memory location or a new store needs one small class.
What the files mean is not known here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from cuvee.errors import CheckpointError, SourceError


class Location(ABC):
    """A flat listing of files that can be read in part before they are fetched whole."""

    identity: str
    """What this location is, beyond doubt: an absolute path, or `hf://repository@commit`."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file, by its name relative to the checkpoint (`/` separated)."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of one file, without fetching the rest; fewer where the file ends."""

    @abstractmethod
    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """A local path that holds the whole file, downloaded first where need be; `advance` is told of bytes got."""

    def uri(self, name: str) -> str:
        """The name under which plans speak of a file."""
        return f"{self.identity}/{name}"


class Directory(Location):
    """A checkpoint in a local directory."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            kind = "a file" if path.exists() else "nothing"
            raise SourceError(
                f"no checkpoint at {path}",
                expected="a directory with config.json and weights, or a Hub id",
                found=kind,
                fix="check the path; relative paths start at the current directory",
                checkpoint=str(path),
            )
        self._path = path
        self.identity = str(path.resolve())

    def sizes(self) -> dict[str, int]:
        """Sizes of all files below the directory; links are followed (the Hub's cache is made of them)."""
        found: dict[str, int] = {}
        for entry in sorted(self._path.rglob("*")):
            parts = entry.relative_to(self._path).parts
            if any(part.startswith(".") and part not in {".", ".."} for part in parts[:-1]):
                continue
            if entry.is_file():
                found["/".join(parts)] = entry.stat().st_size
        return found

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file."""
        try:
            with (self._path / name).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except OSError as error:
            raise CheckpointError(
                f"cannot read {name}: {error.strerror}", where=self.identity, checkpoint=self.identity, file=name
            ) from error

    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """The file's own path."""
        if advance:
            advance(self._path.joinpath(name).stat().st_size)
        return self._path / name
