"""Progress events: what long work tells whoever watches. Drawing them is the command line's affair."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives events, possibly from several threads at once."""

    def begin(self, stage: str, total_bytes: int) -> None:
        """A stage (`download`, `merge`) starts and will move this many bytes."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        ...

    def finished(self, name: str) -> None:
        """A tensor or file is done."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...


class Silent:
    """Watches nothing."""

    def begin(self, stage: str, total_bytes: int) -> None:
        """Ignores the event."""

    def advance(self, count: int) -> None:
        """Ignores the event."""

    def finished(self, name: str) -> None:
        """Ignores the event."""

    def end(self) -> None:
        """Ignores the event."""
