"""A location laid over another: some of its files come from elsewhere. What the files are is not known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cuvee.tensors.location import Location


class Overlay(Location):
    """The files of `below`, with others in place of some or beside them.

    Args:
        below: the location underneath.
        shown: file name -> (location, name there), listed like files of this location.
        hidden: the same for files that can be read but are not listed.
        identity: what the whole is.

    """

    def __init__(
        self,
        below: Location,
        shown: Mapping[str, tuple[Location, str]],
        hidden: Mapping[str, tuple[Location, str]],
        identity: str,
    ) -> None:
        self._below = below
        self._shown = shown
        self._places = {**hidden, **shown}
        self.identity = identity

    def sizes(self) -> dict[str, int]:
        """Sizes of the files that are listed."""
        own = {name: location.sizes()[there] for name, (location, there) in self._shown.items()}
        return {**self._below.sizes(), **own}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""
        location, there = self._places.get(name, (self._below, name))
        return location.read(there, start, stop)

    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """A local path of a file."""
        location, there = self._places.get(name, (self._below, name))
        return location.fetch(there, advance)

    def uri(self, name: str) -> str:
        """The name under which plans speak of a file: that of the location it lies in."""
        location, there = self._places.get(name, (self._below, name))
        return location.uri(there)
