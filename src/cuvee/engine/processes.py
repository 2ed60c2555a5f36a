"""Shares a plan's ops out to worker processes: only op descriptions cross; each reads and writes its own ranges."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.engine.survey import Surveyed
from cuvee.errors import CuveeError
from cuvee.methods.own_file import files_of, load_methods
from cuvee.planning.ops import Plan, TensorOp
from cuvee.progress import Progress, Silent

if TYPE_CHECKING:
    from cuvee.engine.execute import EngineSettings

_CHUNK_SHARE = 16  # chunks a process: enough to even out, few enough that starting one costs nothing
_LARGEST_CHUNK = 512 << 20  # bytes read: progress is told, and an interruption minded, after each
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class _Job:
    """What a worker process needs, once."""

    plan: Plan  # without its ops
    folder: Path
    settings: EngineSettings
    locate: dict[str, Path]
    surveyed: Mapping[str, Surveyed]
    method_files: tuple[Path, ...]


_job: list[_Job] = []


def run_in_processes(
    plan: Plan,
    folder: Path,
    settings: EngineSettings,
    locate: dict[str, Path],
    surveyed: Mapping[str, Surveyed],
    progress: Progress,
) -> None:
    """Runs all ops over `settings.processes` processes; the shard files exist."""
    job = _Job(
        replace(plan, ops=(), dropped=()),
        folder,
        replace(settings, processes=1, threads=settings.worker_threads),
        locate,
        surveyed,
        files_of({op.method for op in plan.ops if op.method is not None}),
    )
    context = multiprocessing.get_context("fork" if can_fork() else "spawn")
    with ProcessPoolExecutor(settings.processes, mp_context=context, initializer=_adopt, initargs=(job,)) as pool:
        futures = {pool.submit(_run, chunk): chunk for chunk in _chunks(plan.ops, settings.processes)}
        try:
            for future in as_completed(futures):
                future.result()
                for op in futures[future]:
                    progress.advance(op.nbytes)
                    progress.finished(op.name)
        except BrokenProcessPool:
            raise CuveeError(
                "a worker process was ended from outside",
                expected="all of them to live until the merge is done",
                fix="most likely memory ran out: lower --memory or --processes",
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def can_fork() -> bool:
    """Whether this process may be forked safely: it has one thread and none of torch's own."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def _chunks(ops: Sequence[TensorOp], processes: int) -> list[tuple[TensorOp, ...]]:
    """Ops in chunks of about equal cost, the largest first, so that none is left over at the end."""
    target = min(sum(op.bytes_read for op in ops) // (processes * _CHUNK_SHARE), _LARGEST_CHUNK) + 1
    chunks: list[list[TensorOp]] = []
    filled = target
    for op in sorted(ops, key=lambda op: -op.bytes_read):
        if filled >= target:
            chunks.append([])
            filled = 0
        chunks[-1].append(op)
        filled += op.bytes_read
    return [tuple(chunk) for chunk in chunks]


def _adopt(job: _Job) -> None:
    """What a new worker does first: it leaves Ctrl-C to its parent, and ends when that does."""
    _job[:] = [job]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: the worker then ends with its next chunk
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    for file in job.method_files:
        load_methods(file)


def _run(ops: tuple[TensorOp, ...]) -> None:
    from cuvee.engine.execute import run_ops

    (job,) = _job
    run_ops(job.plan, ops, job.folder, job.settings, job.locate, job.surveyed, Silent())
