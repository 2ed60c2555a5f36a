"""Runs all ops of a plan: large ones with all threads on one tensor, others one a thread; or in worker processes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.budget import allot
from cuvee.engine.devices import backends_for
from cuvee.engine.files import ShardFiles, create_shards
from cuvee.engine.merge_op import Work, block_reader, blocks_in, run_op, serially
from cuvee.engine.prefetch import Prefetcher, outgrows_memory
from cuvee.engine.processes import can_fork, run_in_processes
from cuvee.engine.survey import Surveyed, is_surveyed, survey
from cuvee.numerics.scan import BlockMap, Range
from cuvee.planning.ops import Plan, TensorOp
from cuvee.progress import Progress
from cuvee.tensors import disk
from cuvee.tensors.reader import FileReader

_WIDE_BLOCKS_A_THREAD = 16  # an op of more blocks than this is shared by all threads
MAX_THREADS = 8
"""Threads of one process: beyond that the interpreter's lock costs more than another thread brings."""
_WORTH_FORKING = 256 << 20  # bytes; below, starting processes costs more than they gain


@dataclass(frozen=True)
class EngineSettings:
    """How to run a plan; nothing here changes a byte of the result (but the kind of device may change a last bit)."""

    devices: str = "cpu"
    threads: int = 0
    processes: int = 0
    memory: int = 1 << 30
    allow_nonfinite: bool = False
    block_elements: int | None = None
    release_cache: bool = False

    @property
    def workers(self) -> int:
        """Threads of all processes together."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or min(cores, MAX_THREADS * max(self.processes, 1))

    @property
    def worker_threads(self) -> int:
        """Threads of each process."""
        return max(self.workers // max(self.processes, 1), 1)


# NumPy's warnings about values that are not finite would only come before the output check's plain words.
_quiet = partial(np.seterr, all="ignore")


class _Stopped(Exception):  # noqa: N818 - not an error: another thread failed or the user interrupted
    """Ends a worker early."""


def execute(
    plan: Plan,
    folder: Path,
    settings: EngineSettings,
    locate: dict[str, Path],
    progress: Progress,
    done: Container[str] = (),
) -> int:
    """Writes every shard of `plan` into `folder`, which exists: the bytes that worker processes took at their largest.

    Args:
        plan: what to do.
        folder: where the shard files go.
        settings: with which devices, threads and memory.
        locate: the local path of every file that the plan's sources name.
        progress: is told of bytes and tensors; called from worker threads.
        done: names of tensors whose bytes are there already.

    Raises:
        CuveeError: whatever a source, a method or the disk refuses; nothing more is written then.

    """
    create_shards(folder, plan.shards)
    settings = replace(shared_out(plan, settings), release_cache=outgrows_memory(plan.ops))
    left = tuple(op for op in plan.ops if op.name not in done)
    # Of the whole plan, whatever is done already: what is asked of a model is asked of all of it.
    surveyed = _survey(plan, folder, settings, locate, progress) if any(map(is_surveyed, left)) else {}
    if settings.processes > 1:
        return run_in_processes(replace(plan, ops=left), folder, settings, locate, surveyed, progress)
    run_ops(plan, left, folder, settings, locate, surveyed, progress)
    return 0


def run_ops(
    plan: Plan,
    ops: Sequence[TensorOp],
    folder: Path,
    settings: EngineSettings,
    locate: dict[str, Path],
    surveyed: Mapping[str, Surveyed],
    progress: Progress,
) -> None:
    """Runs some of a plan's ops in this process."""
    stop = threading.Event()
    with _workplace(plan, folder, settings, locate, surveyed, progress, stop) as works:
        _run_on_threads(ops, works, settings, stop, progress.finished)


def _survey(
    plan: Plan, folder: Path, settings: EngineSettings, locate: dict[str, Path], progress: Progress
) -> dict[str, Surveyed]:
    """What methods want to know of the whole model."""
    stop = threading.Event()
    threads = settings.worker_threads * settings.processes
    with (
        _workplace(plan, folder, settings, locate, {}, progress, stop) as works,
        ThreadPoolExecutor(threads, thread_name_prefix="cuvee", initializer=_quiet) as pool,
    ):
        try:
            return survey(plan.ops, lambda op: block_reader(op, works[0]), _windowed_map(pool, 4 * threads))
        except BaseException:
            stop.set()
            raise


@contextmanager
def _workplace(
    plan: Plan,
    folder: Path,
    settings: EngineSettings,
    locate: dict[str, Path],
    surveyed: Mapping[str, Surveyed],
    progress: Progress,
    stop: threading.Event,
) -> Iterator[list[Work]]:
    """The open files and the devices that ops are run with."""
    keep_freed_blocks(settings.worker_threads)
    disk.allow_open_files(len(locate) + len(plan.shards))
    backends = backends_for(settings.devices)

    def check_stop() -> None:
        if stop.is_set():
            raise _Stopped

    with FileReader(lambda uri: locate[uri]) as reader, ShardFiles(folder, plan.shards) as output:
        works = [
            Work(
                reader=reader,
                output=output,
                backend=backend,
                seed=plan.seed,
                block_elements=settings.block_elements or backend.block_elements,
                allow_nonfinite=settings.allow_nonfinite,
                model_names=tuple(model.name for model in plan.models),
                advance=progress.advance,
                check_stop=check_stop,
                surveyed=surveyed,
            )
            for backend in backends
        ]
        # Reductions must not depend on how many threads BLAS takes, and ours already fill the cores.
        with threadpool_limits(limits=1, user_api="blas"), np.errstate(all="ignore"):
            yield works


def _useful_processes(plan: Plan, settings: EngineSettings) -> int:
    """One process a worker where that is safe and pays: threads of one process wait for each other's Python.

    A tensor is never shared by processes, so the largest must not be most of the merge.
    """
    reads = [op.bytes_read for op in plan.ops if op.method is not None]
    pays = sum(reads) >= _WORTH_FORKING and max(reads) * settings.workers <= sum(reads)
    return settings.workers if pays and settings.devices == "cpu" and can_fork() else 1


def shared_out(plan: Plan, settings: EngineSettings) -> EngineSettings:
    """The settings with the processes that pay, and as many threads and as large blocks as the memory budget holds.

    Raises:
        PlanError: if the plan does not fit the budget.

    """
    settings = replace(settings, processes=settings.processes or _useful_processes(plan, settings))
    backends = backends_for(settings.devices)
    if settings.block_elements:
        return settings
    found = allot(
        plan,
        settings.memory,
        processes=settings.processes * len(backends),
        threads=settings.worker_threads,
        block_elements=backends[0].block_elements,
        working=backends[0].working_memory,
    )
    return replace(settings, threads=found.threads * settings.processes, block_elements=found.block_elements)


def _run_on_threads(
    ops: Sequence[TensorOp],
    works: Sequence[Work],
    settings: EngineSettings,
    stop: threading.Event,
    finished: Callable[[str, int, float], None],
) -> None:
    """All ops, over the settings' threads for each device."""
    threads = settings.worker_threads
    wide = [op for op in ops if is_wide(op, threads, works[0].block_elements)]
    chosen = {op.name for op in wide}
    others = [op for op in ops if op.name not in chosen]
    narrow = iter(others)
    lock = threading.Lock()
    hints = Prefetcher([*wide, *others], works[0].reader, works[0].output, release=settings.release_cache)

    def run(op: TensorOp, work: Work, block_map: BlockMap[Any]) -> None:
        hints.begin(op)
        begin = time.perf_counter()
        run_op(op, work, block_map)
        hints.done(op)
        finished(op.name, op.nbytes, time.perf_counter() - begin)

    def lane(work: Work) -> None:
        with work.backend.lane():
            while True:
                with lock:
                    op = next(narrow, None)
                if op is None:
                    return
                work.check_stop()
                run(op, work, serially)

    with ThreadPoolExecutor(threads * len(works), thread_name_prefix="cuvee", initializer=_quiet) as pool:
        try:
            for number, op in enumerate(wide):
                run(op, works[number % len(works)], pool_map(pool))
            _wait([pool.submit(lane, work) for work in works for _ in range(threads)])
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def is_wide(op: TensorOp, threads: int, block_elements: int) -> bool:
    """Whether all threads of a process work on the op together."""
    return threads > 1 and blocks_in(op, block_elements) > _WIDE_BLOCKS_A_THREAD * threads


def pool_map(pool: ThreadPoolExecutor) -> Callable[..., Iterator[Any]]:
    """A block map over the pool's threads: results in order."""

    def block_map(function: Callable[[Range], Any], spans: Iterable[Range]) -> Iterator[Any]:
        futures = [pool.submit(function, span) for span in spans]
        _wait(futures)
        return (future.result() for future in futures)

    return block_map


def _windowed_map(pool: ThreadPoolExecutor, window: int) -> Callable[..., Iterator[Any]]:
    """The same for the ranges of a whole model, of which there may be many: so many at a time are handed out."""

    def block_map(function: Callable[[Range], Any], spans: Iterable[Range]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for span in spans:
            waiting.append(pool.submit(function, span))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return block_map


def _wait(futures: Sequence[Future[Any]]) -> None:
    """Waits for all, or raises what the first to fail raised."""
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    if waiting or any(future.exception() for future in done):
        for future in waiting:
            future.cancel()
        raise next(error for future in done if (error := future.exception()) is not None)
