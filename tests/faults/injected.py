"""Faults injected into a merge in this process.

Calls of the system fail or do less than they were asked to, inputs change under the merge, the line to the Hub is bad.
Each fault says what may come of it. Whatever it is: an error is a `CuveeError`, OUT holds the finished merge or
nothing, and the same merge without the fault then gives the right bytes.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from huggingface_hub import constants

import cuvee
from cuvee import MergeOptions
from cuvee.errors import CheckpointError, CuveeError, OutputError
from cuvee.tensors import hub_refusals
from faults.harness import Tally, files_of, loads
from support.hub_server import HubServer, use_hub
from support.tiny_models import Family, make_llama, recipe

RECIPES = {
    "ties": 'merge_method: ties\nbase_model: "@base"\nmodels: [{model: "@a"}]\nparameters: {density: 0.5, weight: 1}\n',
    "copies": 'merge_method: passthrough\nmodels: [{model: "@a"}]\n',
}
Ends = Literal["finishes", "either"]


@dataclass(frozen=True)
class Fault:
    """A way to suffer: `strike(draw, family)` is in force while it is entered."""

    name: str
    ends: Ends
    strike: Callable[[random.Random, Family], AbstractContextManager[object]]
    error: type[CuveeError] = OutputError


@contextmanager
def call_fails(name: str, code: int, draw: random.Random, among: int, when: Callable[..., bool]) -> Iterator[None]:
    """One call of `os.NAME` fails, any of the first `among`, and all after it: a disk does not mend itself."""
    real, left, lock = getattr(os, name), [draw.randrange(among)], threading.Lock()

    def call(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    with mock.patch.object(os, name, call):
        yield


def fails(name: str, code: int, among: int, *, of: str, when: Callable[..., bool] = lambda *_: True) -> Fault:
    error = CheckpointError if name == "preadv" else OutputError
    title = f"{errno.errorcode[code]} {of}"
    return Fault(title, "either", lambda draw, _: call_fails(name, code, draw, among, when), error)


def to_write(path: Any, flags: int, *_: Any) -> bool:
    return bool(flags & (os.O_RDWR | os.O_WRONLY)) and ".partial" in str(path)


def to_read(path: Any, flags: int, *_: Any) -> bool:
    return not flags & (os.O_RDWR | os.O_WRONLY) and str(path).endswith(".safetensors") and ".partial" not in str(path)


@contextmanager
def short_transfers(draw: random.Random, family: Family) -> Iterator[None]:
    """Reads, writes and copies move a part of what they were asked to."""
    pwrite, preadv, copy = os.pwrite, os.preadv, os.copy_file_range
    lock = threading.Lock()

    def part(count: int) -> int:
        with lock:
            return draw.randint(1, max(count, 1))

    with (
        mock.patch.object(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: part(len(data))], at)),
        mock.patch.object(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][: part(len(into[0]))]], at)),
        mock.patch.object(os, "copy_file_range", lambda s, t, n, *at: copy(s, t, part(n), *at)),
    ):
        yield


@contextmanager
def after_reads(draw: random.Random, family: Family, do: Callable[[Path], None]) -> Iterator[None]:
    """Does something to an input after a few of the merge's reads, and puts the input back at the end."""
    path = family.path("a") / "model.safetensors"
    whole, state = path.read_bytes(), path.stat()
    real, left, lock = os.preadv, [draw.randrange(3, 25)], threading.Lock()

    def read(*arguments: Any) -> int:
        with lock:
            left[0] -= 1
            if left[0] == 0:
                do(path)
        return real(*arguments)

    try:
        with mock.patch.object(os, "preadv", read):
            yield
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def rewrite(path: Path) -> None:
    """Other values in the same place, as a training run that saves once more would leave them."""
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    with path.open("r+b") as file:
        file.write(data)


FAULTS = (
    Fault("short reads, writes and copies", "finishes", short_transfers),
    fails("pwrite", errno.ENOSPC, 40, of="while writing"),
    fails("pwrite", errno.EDQUOT, 40, of="while writing"),
    fails("pwrite", errno.EIO, 40, of="while writing"),
    fails("copy_file_range", errno.ENOSPC, 30, of="while copying"),
    fails("copy_file_range", errno.EIO, 30, of="while copying"),
    fails("fdatasync", errno.EIO, 4, of="while making durable"),
    fails("fsync", errno.EIO, 8, of="while making durable"),
    fails("posix_fallocate", errno.ENOSPC, 3, of="while reserving space"),
    fails("open", errno.EACCES, 6, of="while opening to write", when=to_write),
    fails("open", errno.EROFS, 6, of="while opening to write", when=to_write),
    fails("rename", errno.EIO, 1, of="while renaming"),
    fails("mkdir", errno.EACCES, 3, of="while making directories"),
    fails("preadv", errno.EIO, 40, of="while reading"),
    fails("preadv", errno.ESTALE, 40, of="while reading"),
    Fault("EACCES while opening to read", "either",
          lambda draw, _: call_fails("open", errno.EACCES, draw, 3, to_read), CheckpointError),
    Fault("input removed while it is read", "finishes", lambda d, f: after_reads(d, f, Path.unlink), CheckpointError),
    Fault("input cut short while it is read", "either",
          lambda d, f: after_reads(d, f, lambda path: os.truncate(path, 6000)), CheckpointError),
    Fault("input rewritten while it is read", "either", lambda d, f: after_reads(d, f, rewrite), CheckpointError),
)  # fmt: skip


def suffer(fault: Fault, folder: Path, trials: int, seed: int) -> Tally:
    """What comes of merges under this fault, half of them of arithmetic and half of copies."""
    family = make_llama(folder / "family", names=("base", "a"))
    right = {name: merged(text, family, folder / "right" / name / "out") for name, text in RECIPES.items()}
    tally, draw = Tally(trials=trials), random.Random(seed)
    for number in range(trials):
        name = list(RECIPES)[number % 2]
        out = folder / f"trial{number}" / "out"
        problem = None
        try:
            with fault.strike(draw, family):
                found = merged(RECIPES[name], family, out, threads=1 + number // 2 % 2)
        except fault.error as error:
            tally.stopped += 1
            problem = told_badly(error, out) or ("stopped" if fault.ends == "finishes" else None)
            report = cuvee.merge(recipe(RECIPES[name], family), out, MergeOptions(out_shard_size="30k"))
            tally.resumed += report.resumed > 0
            found = files_of(out)
        else:
            tally.finished += 1
        if found != right[name]:
            problem = "other bytes"
        if left := {path.name for path in out.parent.iterdir()} - {"out"}:
            problem = f"left {left}"
        if problem:
            tally.wrong.append(f"{fault.name}, trial {number}: {problem}")
    return tally


def merged(text: str, family: Family, out: Path, threads: int = 1) -> dict[str, bytes]:
    cuvee.merge(recipe(text, family), out, MergeOptions(threads=threads, out_shard_size="30k"))
    return files_of(out)


def told_badly(error: CuveeError, out: Path) -> str | None:
    """What is wrong with what a merge left that was stopped by `error`."""
    partial = out.with_name("out.partial")
    if out.exists():
        return "something is at OUT"
    if loads(partial):
        return "out.partial would load"
    if partial.exists() != bool(getattr(error, "__notes__", ())):
        return "what is kept and what is said of it differ"
    return None


LINES = {
    "every file request waits 50 ms": {"delay_seconds": 0.05},
    "the connection drops three times in the middle of a file": {"drop_after": 30_000, "drops": 3},
    "three file requests in a row are answered with 503": {"failures": 3, "failure_status": 503},
}


def bad_line(faults: dict[str, Any], folder: Path) -> Tally:
    """What comes of a merge of models on a Hub behind a bad line; and that no byte is sent twice."""
    family = make_llama(folder / "family", hidden=32, names=("base", "a"))
    text = RECIPES["ties"].replace("@", "vineyard/")
    right, tally = merged(RECIPES["ties"], family, folder / "right" / "out"), Tally(trials=1)
    with (
        HubServer() as server,
        mock.patch.object(hub_refusals, "_WAITS_SECONDS", (0.01, 0.01, 0.01)),
        ExitStack() as stack,
    ):
        # What comes of the last chunk before a break is lost, and a real one is larger than these models.
        stack.enter_context(mock.patch.object(constants, "DOWNLOAD_CHUNK_SIZE", 4096))
        for name in ("base", "a"):
            server.add(f"vineyard/{name}", family.path(name))
        with use_hub(server, folder / "home"):
            cuvee.plan(text)
            for name, value in faults.items():
                setattr(server.faults, name, value)
            begin = server.sent()
            try:
                cuvee.merge(text, folder / "out", MergeOptions(out_shard_size="30k"))
                tally.finished = 1
            except CuveeError as error:
                tally.stopped = 1
                tally.wrong.append(str(error))
                return tally
            sent = server.sent() - begin
    weights = {name: files_of(folder / "out")[name] for name in right if name.endswith(".safetensors")}
    size = sum((family.path(name) / "model.safetensors").stat().st_size for name in ("base", "a"))
    if [data[-1000:] for data in weights.values()] != [right[name][-1000:] for name in weights]:
        tally.wrong.append("other values")
    if sent > 1.2 * size:
        tally.wrong.append(f"{sent} bytes sent for {size}")
    return tally
