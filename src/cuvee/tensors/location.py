"""Where a checkpoint's files lie: the narrow seam between a directory and the Hub.

Everything above asks only these few questions, so a test's in-memory location or a new store needs one small class.
What the files mean is not known here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from cuvee.errors import CheckpointError, SourceError

_DEPTH = 3  # folders below folders that may hold something of a checkpoint's
_MAX_ENTRIES = 100_000


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

    def link_target(self, name: str) -> Path | None:  # noqa: ARG002
        """Where a file lies if it is a link that leads out of the checkpoint, and None if it is not."""
        return None

    @abstractmethod
    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """A local path that holds the whole file, downloaded first where need be; `advance` is told of bytes got."""

    def uri(self, name: str) -> str:
        """The name under which plans speak of a file."""
        return f"{self.identity}/{name}"


class Directory(Location):
    """A checkpoint in a local directory."""

    def __init__(self, path: Path) -> None:
        if not os.path.isdir(path):  # noqa: PTH112 (Path raises for names that cannot be)
            kind = "a file" if os.path.exists(path) else "nothing"  # noqa: PTH110
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
        """Sizes of all files below the directory; links to files are followed (the Hub's cache is made of them).

        Hidden folders are left out, and so is what lies deeper than a checkpoint goes.
        """
        found: dict[str, int] = {}
        folders = [("", 0)]
        seen = 0
        while folders:
            folder, depth = folders.pop()
            for entry in self._entries(folder):
                seen += 1
                if seen > _MAX_ENTRIES:
                    raise SourceError(
                        f"{self._path} holds more than {_MAX_ENTRIES:,} files: it is no checkpoint",
                        fix="name the directory that holds the weights",
                        checkpoint=str(self._path),
                    )
                with suppress(OSError):  # it went away meanwhile, or may not be looked at
                    if entry.is_file():
                        found[folder + entry.name] = entry.stat().st_size
                    elif entry.is_dir(follow_symlinks=False) and depth < _DEPTH and not entry.name.startswith("."):
                        folders.append((f"{folder}{entry.name}/", depth + 1))
        return dict(sorted(found.items()))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._path / folder) as entries:
                return list(islice(entries, _MAX_ENTRIES + 1))
        except OSError as error:
            if folder:
                return []
            raise SourceError(f"cannot look into {self._path}: {error.strerror}", checkpoint=str(self._path)) from error

    def link_target(self, name: str) -> Path | None:
        """Where a link leads to, if out of the directory and not into the Hub's store of blobs."""
        path = (self._path / name).resolve()
        inside = path.is_relative_to(self._path.resolve())
        return None if inside or path.parent.name == "blobs" else path

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


def some_of(files: Iterable[str]) -> str:
    """What lies at a location, in words: the first few files."""
    return ", ".join(sorted(files)[:8]) or "an empty directory"
