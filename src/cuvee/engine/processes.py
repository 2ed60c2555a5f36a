"""Shares a plan's ops out to worker processes: only op descriptions cross; each reads and writes its own ranges."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.memory import resident
from cuvee.engine.survey import Surveyed
from cuvee.errors import PlanError
from cuvee.methods.own_file import files_of, load_methods
from cuvee.planning.ops import Plan, TensorOp
from cuvee.progress import Progress, Silent

if TYPE_CHECKING:
    from ctypes import c_byte

    from cuvee.engine.execute import EngineSettings

_GUARD_SECONDS = 0.1
_CHUNK_SHARE = 8  # a chunk is this part of what is left for each process: the last ones even out
_SMALLEST_CHUNK = 16 << 20  # bytes read: starting one should cost next to nothing
_LARGEST_CHUNK = 512 << 20  # progress is told, and an interruption minded, after each


@dataclass(frozen=True)
class _Job:
    """What a worker process needs, once."""

    plan: Plan  # without its ops
    folder: Path
    settings: EngineSettings
    locate: dict[str, Path]
    surveyed: Mapping[str, Surveyed]
    method_files: tuple[Path, ...]
    parent: int


_job: list[_Job] = []


def run_in_processes(
    plan: Plan,
    folder: Path,
    settings: EngineSettings,
    locate: dict[str, Path],
    surveyed: Mapping[str, Surveyed],
    progress: Progress,
) -> int:
    """Runs all ops over `settings.processes` processes: the bytes that they took at their largest, together.

    The shard files exist.
    """
    job = _Job(
        replace(plan, ops=(), dropped=()),
        folder,
        replace(settings, processes=1, threads=settings.worker_threads),
        locate,
        surveyed,
        files_of({op.method for op in plan.ops if op.method is not None}),
        os.getpid(),
    )
    context = multiprocessing.get_context("fork" if can_fork() else "spawn")
    stop = context.RawValue("b", 0)  # without a lock, which a worker that is killed would hold for ever
    with ProcessPoolExecutor(settings.processes, mp_context=context, initializer=_adopt, initargs=(job, stop)) as pool:
        futures = {pool.submit(_run, chunk): chunk for chunk in _chunks(plan.ops, settings.processes)}
        peaks: dict[int, int] = {}
        try:
            for future in as_completed(futures):
                process, peak, seconds = future.result()
                peaks[process] = peak
                for op in futures[future]:
                    progress.advance(op.nbytes)
                    progress.finished(op.name, op.nbytes, seconds[op.name])
        except BaseException as error:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise _killed() from error
            raise
    return sum(peaks.values())


def _killed() -> PlanError:
    return PlanError(
        "a worker process was ended from outside",
        expected="all of them to live until the merge is done",
        fix="most likely memory ran out: lower --memory or --processes, then run the same command again",
        errno=errno.ENOMEM,
    )


def can_fork() -> bool:
    """Whether this process may be forked safely: it has one thread and none of torch's own."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def _chunks(ops: Sequence[TensorOp], processes: int) -> list[tuple[TensorOp, ...]]:
    """Ops in chunks, the largest ops first, and ever smaller chunks, so that all processes end at about one time."""
    left = sum(op.bytes_read for op in ops)
    chunks: list[list[TensorOp]] = []
    room = 0
    for op in sorted(ops, key=lambda op: -op.bytes_read):
        if room <= 0:
            chunks.append([])
            room = min(max(left // (processes * _CHUNK_SHARE), _SMALLEST_CHUNK), _LARGEST_CHUNK)
        chunks[-1].append(op)
        room -= op.bytes_read
        left -= op.bytes_read
    return [tuple(chunk) for chunk in chunks]


def _adopt(job: _Job, stop: c_byte) -> None:
    """What a new worker does first: it leaves interrupts to its parent, and sees to it that it ends with that."""
    _job[:] = [job]
    keep_freed_blocks(job.settings.worker_threads)  # before there is a second thread
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, args=(job.parent, stop), name="cuvee-guard", daemon=True).start()
    for file in job.method_files:
        load_methods(file)


def _leave_with_parent(parent: int, stop: c_byte) -> None:
    """Ends this process when the parent says so or has died: what it has not finished is not in the journal."""
    while not stop.value and os.getppid() == parent:
        time.sleep(_GUARD_SECONDS)
    os._exit(1)


class _Timed(Silent):
    """Keeps how long each tensor took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:  # noqa: ARG002
        self.seconds[name] = seconds


def _run(ops: tuple[TensorOp, ...]) -> tuple[int, int, dict[str, float]]:
    """Runs a chunk: this process, its largest size so far, and each tensor's seconds."""
    from cuvee.engine.execute import run_ops

    (job,) = _job
    timed = _Timed()
    run_ops(job.plan, ops, job.folder, job.settings, job.locate, job.surveyed, timed)
    return os.getpid(), resident("VmHWM"), timed.seconds
