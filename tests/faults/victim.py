"""`cuvee`, made to suffer: `python victim.py '{"die_at": 7}' merge recipe.yml out`.

The first argument is JSON:
    every: seconds between groups of the journal (the real second is longer than a test's whole merge)
    pace: seconds that each tensor takes at least, so that most of a run is spent on them
    die_at: kill this process, as `kill -9` does, just before its n-th change of the disk
    trace: a file that tells of every write and every sync, so that the test can take back what was never made durable
    calls: a file for the number of changes of the disk that a whole run makes
    fill: a file to write until the disk is full, when the shard files have been created

It prints `ready` when everything is loaded.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuvee.api  # noqa: F401 - loaded before `ready` is said, so that instants are spread over the merge alone
from cuvee.cli import main
from cuvee.engine import execute, journal
from cuvee.tensors import disk

_CHANGES = ("write_at", "copy_range", "preallocate", "write_file", "sync", "sync_directory", "make_directory",
            "remove_tree", "keep_only")  # fmt: skip
_lock = threading.Lock()


class Counter:
    """Counts changes of the disk, and kills the process before one of them."""

    def __init__(self, die_at: int | None) -> None:
        self.count = 0
        self._die_at = die_at

    def step(self) -> None:
        with _lock:
            self.count += 1
            if self.count == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            self.step()
            return call(*arguments, **named)

        return counting


def trace_to(file: Path) -> None:
    """Tells of writes before they are made and of syncs when they begin and are over."""
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*words: object) -> None:
        os.write(stream, (json.dumps(words) + "\n").encode())

    write_at, copy_range, sync, sync_directory = disk.write_at, disk.copy_range, disk.sync, disk.sync_directory

    def write(descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        tell("write", str(path), offset, len(data))
        write_at(descriptor, data, offset, path)

    def copy(source: int, start: int, target: int, offset: int, count: int, name: str, path: Path) -> None:
        tell("write", str(path), offset, count)
        copy_range(source, start, target, offset, count, name, path)

    def synced(descriptor: int, path: Path) -> None:
        tell("begin", str(path))
        sync(descriptor, path)
        tell("durable", str(path))

    def names_synced(path: Path) -> None:
        sync_directory(path)
        tell("names", str(path))

    disk.write_at, disk.copy_range, disk.sync, disk.sync_directory = write, copy, synced, names_synced


def fill_when_created(file: Path) -> None:
    """Fills the disk up when the shard files have their space."""
    create_shards = execute.create_shards

    def create(*arguments: Any) -> None:
        create_shards(*arguments)
        with file.open("wb", buffering=0) as stream:
            for size in (1 << 16, 1 << 8, 1):
                try:
                    while True:
                        stream.write(bytes(size))
                except OSError:
                    continue

    execute.create_shards = create


def slow_down(seconds: float) -> None:
    run_op = execute.run_op

    def run(*arguments: Any) -> None:
        time.sleep(seconds)
        run_op(*arguments)

    execute.run_op = run


def suffer(settings: dict[str, Any]) -> None:
    journal._EVERY_SECONDS = settings.get("every", journal._EVERY_SECONDS)
    if "pace" in settings:
        slow_down(settings["pace"])
    if "trace" in settings:
        trace_to(Path(settings["trace"]))
    if "fill" in settings:
        fill_when_created(Path(settings["fill"]))
    if "die_at" in settings or "calls" in settings:
        counter = Counter(settings.get("die_at"))
        for name in _CHANGES:
            setattr(disk, name, counter.counted(getattr(disk, name)))
        Path.rename = counter.counted(Path.rename)  # type: ignore[method-assign]
        Path.unlink = counter.counted(Path.unlink)  # type: ignore[method-assign]
        shutil.rmtree = counter.counted(shutil.rmtree)  # type: ignore[assignment]
        disk._exchange = counter.counted(disk._exchange)
        if "calls" in settings:
            atexit.register(lambda: Path(settings["calls"]).write_text(str(counter.count)))


if __name__ == "__main__":
    suffer(json.loads(sys.argv[1]))
    print("ready", flush=True)
    main(sys.argv[2:])
