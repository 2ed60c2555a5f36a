"""Draws progress: bars on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cuvee import progress as events

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_SECONDS = 5.0
_DRAW_EVERY_SECONDS = 0.1


@contextmanager
def watcher(*, verbose: bool, quiet: bool) -> Iterator[events.Progress]:
    """What draws a merge's progress on standard error."""
    if quiet:
        yield events.Silent()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("[bold]{task.description:9}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bars:
            yield _Bars(bars, verbose=verbose)
    else:
        yield _Lines(verbose=verbose)


class _Bars:
    """Bars on a terminal, drawn as bytes come in: a thread of their own would keep the engine from forking."""

    def __init__(self, bars: Progress, *, verbose: bool) -> None:
        self._bars = bars
        self._drawn = 0.0
        self._verbose = verbose
        self._task: TaskID | None = None

    def begin(self, stage: str, total_bytes: int) -> None:
        self._task = self._bars.add_task(stage, total=total_bytes)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, count)
            if time.monotonic() - self._drawn > _DRAW_EVERY_SECONDS:
                self._drawn = time.monotonic()
                self._bars.refresh()

    def finished(self, name: str) -> None:
        if self._verbose:
            self._bars.console.print(name, highlight=False)

    def end(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._lock = threading.Lock()
        self._stage, self._total, self._done = "", 0, 0
        self._said = time.monotonic()

    def begin(self, stage: str, total_bytes: int) -> None:
        self._stage, self._total, self._done = stage, total_bytes, 0

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._said > _LINE_EVERY_SECONDS:
                self._said = time.monotonic()
                share = 100 * self._done / max(self._total, 1)
                self._say(f"{self._stage}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB ({share:.0f} %)")

    def finished(self, name: str) -> None:
        if self._verbose:
            self._say(name)

    def end(self) -> None:
        pass

    def _say(self, text: str) -> None:
        sys.stderr.write(text + "\n")
