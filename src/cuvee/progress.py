"""Progress events: what long work tells whoever watches. Drawing them is the command line's affair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives events, possibly from several threads at once."""

    def begin(self, stage: str, total_bytes: int) -> None:
        """A stage (`download`, `merge`) starts and will move this many bytes."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        ...

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        """A tensor or file of `count` bytes is done, and took so long."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Something happened that a log would tell: `planned`, `resumed`, `restarted`, `finished` or `failed`."""
        ...


class Silent:
    """Watches nothing."""

    def begin(self, stage: str, total_bytes: int) -> None:
        """Ignores the event."""

    def advance(self, count: int) -> None:
        """Ignores the event."""

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        """Ignores the event."""

    def end(self) -> None:
        """Ignores the event."""

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Ignores the event."""
