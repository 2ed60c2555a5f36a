"""Every file call of a merge goes through here: one seam for faults, fallbacks and other systems.

It moves bytes and states what failed; it does not know what the bytes mean.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import repeat
from pathlib import Path

from cuvee.errors import CheckpointError, OutputError

REPLACED = ".replaced"
"""Ends the name of an old output while a new one takes its place."""

_CHUNK = 1 << 24
_OTHER_FILES = 256
_CAN_COPY_RANGE = hasattr(os, "copy_file_range")
_CAN_ADVISE = hasattr(os, "posix_fadvise")
# Another file system, a network mount or an old kernel may refuse the call; the plain copy then serves.
_NOT_HERE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


def open_to_read(path: Path) -> int:
    """A file descriptor to read `path`."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", file=str(path), errno=error.errno) from error


def open_to_write(path: Path) -> int:
    """A file descriptor to write into the existing file `path`."""
    try:
        return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise _write_error(path, error) from error


def read_into(descriptor: int, buffer: memoryview, offset: int, name: str) -> None:
    """Fills `buffer` from the file's bytes at `offset`.

    Raises:
        CheckpointError: if the file ends early (it changed since its header was read) or cannot be read.

    """
    done = 0
    try:
        while done < len(buffer):
            if hasattr(os, "preadv"):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
            else:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                count = os.readv(descriptor, [buffer[done:]])
            if count == 0:
                raise CheckpointError(
                    f"{name} ends before its tensors do",
                    expected=f"{len(buffer)} bytes at offset {offset}",
                    found=f"{done} bytes",
                    fix="the file changed or was cut short: fetch it again",
                    file=name,
                )
            done += count
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror}", file=name, errno=error.errno) from error


def gather(
    descriptor: int, buffer: memoryview, offset: int, width: int, runs: Sequence[tuple[int, int, int]], name: str
) -> None:
    """Fills `buffer` with runs of rows of `width` bytes of the table at `offset`: (place, first row, rows) each."""
    parts = [(buffer[place * width : (place + count) * width],) for place, _, count in runs]
    offsets = [offset + first * width for _, first, _ in runs]
    done: list[int] = []
    if hasattr(os, "preadv"):
        with suppress(OSError):  # thousands of short reads: nothing but the call itself on the way, errors come below
            done = list(map(os.preadv, repeat(descriptor), parts, offsets))
    if done != [count * width for _, _, count in runs]:
        for (part,), start in zip(parts, offsets, strict=True):
            read_into(descriptor, part, start, name)


def write_at(descriptor: int, data: memoryview, offset: int, path: Path) -> None:
    """Writes all of `data` into the file at `offset`."""
    done = 0
    try:
        while done < len(data):
            if hasattr(os, "pwrite"):
                done += os.pwrite(descriptor, data[done:], offset + done)
            else:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                done += os.write(descriptor, data[done:])
    except OSError as error:
        raise _write_error(path, error) from error


def copy_range(source: int, start: int, target: int, offset: int, count: int, name: str, path: Path) -> None:
    """Copies `count` bytes between files, inside the kernel where it can (some file systems then share blocks)."""
    done = 0
    while done < count and _CAN_COPY_RANGE:
        try:
            moved = os.copy_file_range(source, target, min(count - done, 1 << 30), start + done, offset + done)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise _write_error(path, error) from error
            break
        if moved == 0:
            break
        done += moved
    buffer = memoryview(bytearray(min(_CHUNK, count - done)))
    while done < count:
        part = buffer[: min(_CHUNK, count - done)]
        read_into(source, part, start + done, name)
        write_at(target, part, offset + done, path)
        done += len(part)


def preallocate(path: Path, header: bytes, size: int) -> None:
    """Creates `path` with `header` at its start and `size` bytes in all, reserved on the disk where the system can."""
    try:
        with path.open("xb") as file:
            file.write(header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
            file.truncate(size)
    except OSError as error:
        raise _write_error(path, error, size) from error


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file whole and makes it durable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_error(path, error) from error


def sync(descriptor: int, path: Path) -> None:
    """Waits until what was written to the file would outlast a power failure."""
    try:
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)
    except OSError as error:
        raise _write_error(path, error) from error


def start_writing(path: Path) -> None:
    """Sets the writing of the file's changed bytes to the disk going, so that a later `sync` finds little left.

    A hint: nothing is waited for, and where the system lacks the call nothing happens.
    """
    if (call := _sync_file_range()) is None:
        return
    descriptor = open_to_write(path)
    try:
        whole, begin_only = ctypes.c_int64(0), 2
        call(descriptor, whole, whole, begin_only)
    finally:
        os.close(descriptor)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):  # not Linux
        return None


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory would outlast a power failure, where the system knows such a thing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise _write_error(path, error) from error
    finally:
        os.close(descriptor)


def will_need(descriptor: int, offset: int, count: int) -> None:
    """Tells the kernel that these bytes are read soon."""
    if _CAN_ADVISE:
        os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_WILLNEED)


def release(descriptor: int, offset: int, count: int) -> None:
    """Tells the kernel that these bytes are not needed again, so that its cache stays for others."""
    if _CAN_ADVISE:
        os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)


def allow_open_files(count: int) -> None:
    """Raises this process's own limit of open files, if the system lets it, so that `count` more can be open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that `path` is or would be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def make_directory(path: Path) -> None:
    """Makes a directory, and its parents, if it is not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error


def replace_directory(new: Path, final: Path) -> None:
    """Puts `new` where `final` is. An old one is swapped out in one step where the system can, and goes afterwards.

    Where it cannot, the old one lies beside `new` for a moment, `REPLACED` behind its name: `put_back` is for those who
    are killed then.
    """
    try:
        if not final.exists():
            new.rename(final)
        elif _exchange(new, final):
            remove_tree(new)
        else:
            aside = new.with_name(f"{new.name}{REPLACED}")
            final.rename(aside)
            try:
                new.rename(final)
            except OSError:
                aside.rename(final)
                raise
            remove_tree(aside)
    except OSError as error:
        raise _write_error(final, error) from error


def put_back(new: Path, final: Path) -> None:
    """Gives `final` back what `replace_directory` had taken from there when it was killed, if it was."""
    aside = new.with_name(f"{new.name}{REPLACED}")
    try:
        if aside.is_dir() and not final.exists():
            aside.rename(final)
    except OSError as error:
        raise _write_error(final, error) from error


def _exchange(first: Path, second: Path) -> bool:
    """Whether two directories could be swapped atomically (Linux, most file systems)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no such call on this system
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), swap) == 0)


def remove_tree(path: Path) -> None:
    """Removes a directory and all below it, if it is there."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    except OSError as error:
        raise _write_error(path, error) from error


def remove_file(path: Path) -> None:
    """Removes a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Removes all that is below a directory but the files of these relative names (with `/`)."""
    try:
        for path in sorted(folder.rglob("*"), reverse=True):  # what is in a directory comes before it
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(folder).as_posix() not in names:
                path.unlink()
    except OSError as error:
        raise _write_error(folder, error) from error


@contextmanager
def descriptor_of(path: Path) -> Iterator[int]:
    """A descriptor to read `path`, closed at the end."""
    descriptor = open_to_read(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError, size: int = 0) -> OutputError:
    """The refusal; where the disk is full and it is known that `size` bytes were wanted, with how many are lacking."""
    fixes = {
        errno.ENOSPC: "free some space or choose an output on a larger disk, then run the same command again",
        errno.EACCES: "choose an output directory that you may write to",
        errno.EROFS: "choose an output directory that you may write to",
        errno.EDQUOT: "your quota is used up: free some space, then run the same command again",
    }
    fix, expected, found = fixes.get(error.errno or 0), None, None
    if error.errno == errno.ENOSPC:
        free = free_bytes(path)
        found = f"{free / 1e9:.2f} GB free"
        if size > free:
            expected = f"{size / 1e9:.2f} GB free"
            fix = f"free {(size - free) / 1e9:.2f} GB more or choose an output on a larger disk, then run it again"
    return OutputError(
        f"cannot write {path}: {error.strerror}",
        expected=expected,
        found=found,
        fix=fix,
        path=str(path),
        errno=error.errno,
    )
