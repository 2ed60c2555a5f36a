"""A log for programs: every event of a merge as one JSON object a line.

The lines are written as things happen, so that a log that ends early says how far a merge had come.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cuvee.errors import OutputError
from cuvee.progress import Progress


@contextmanager
def logged(progress: Progress, file: Path | None) -> Iterator[Progress]:
    """A watcher that writes every event into `file` too, which is replaced; `progress` itself without one.

    Raises:
        OutputError: if the file cannot be written.

    """
    if file is None:
        yield progress
        return
    try:
        with file.open("w", encoding="utf-8") as stream:
            yield _Log(progress, stream)
    except OSError as error:
        raise OutputError(
            f"cannot write the log {file}: {error.strerror}", path=str(file), errno=error.errno
        ) from error


class _Log:
    """Hands events on, and writes those that are not mere bytes."""

    def __init__(self, watcher: Progress, stream: TextIO) -> None:
        self._watcher = watcher
        self._stream = stream
        self._lock = threading.Lock()
        self._stage = ""

    def begin(self, stage: str, total_bytes: int) -> None:
        self._stage = stage
        self._write("begin", {"stage": stage, "bytes": total_bytes})
        self._watcher.begin(stage, total_bytes)

    def advance(self, count: int) -> None:
        self._watcher.advance(count)

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        self._write("done", {"stage": self._stage, "name": name, "bytes": count, "seconds": round(seconds, 6)})
        self._watcher.finished(name, count, seconds)

    def end(self) -> None:
        self._write("end", {"stage": self._stage})
        self._watcher.end()

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        self._write(name, facts)
        self._watcher.event(name, facts)

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()
