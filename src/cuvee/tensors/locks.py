"""One process at a time: a lock on a file that the system lets go of when its holder dies, however it dies.

What the lock protects is not known here.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cuvee.errors import OutputError
from cuvee.tensors import disk

_PATIENCE_SECONDS = 2.0  # worker processes of a run that was killed need a moment to notice
_PAUSE_SECONDS = 0.05


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock on the file `path`, which is made with its directory; it names the process that holds it.

    A holder who is done may remove both, whenever that is: they are then made anew.

    Raises:
        OutputError: if another process holds it, or it cannot be made. Facts: `path`, `owner` (its process id).

    """
    descriptor = _acquire(path)
    try:
        with suppress(OutputError):  # a full disk: the name is only there to be told, the lock holds without it
            disk.write_at(descriptor, memoryview(f"{os.getpid():<20}".encode()), 0, path)
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        disk.make_directory(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            if error.errno == errno.ENOENT and time.monotonic() < give_up:
                time.sleep(_PAUSE_SECONDS)  # another process has removed the directory just now
                continue
            raise OutputError(f"cannot write {path}: {error.strerror}", path=str(path), errno=error.errno) from error
        free = _try_to_lock(descriptor)
        if free and _still_there(descriptor, path):
            return descriptor
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if not free and time.monotonic() > give_up:
            raise OutputError(
                f"another merge{f' (process {owner})' if owner else ''} is writing to this output",
                fix="wait for it or stop it, or choose another output",
                path=str(path.parent),
                owner=owner,
            )
        if not free:
            time.sleep(_PAUSE_SECONDS)


def _try_to_lock(descriptor: int) -> bool:
    """Whether the lock is ours now; where the system or the file system has none, it is everybody's."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
    return True


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the file was not removed, by a holder who was done, while we waited for it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
