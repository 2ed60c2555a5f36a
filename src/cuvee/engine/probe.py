"""A short look at this machine, so that estimates are about it: reading, writing, copying, and the plan's own methods.

The methods run for real, on blocks in memory shaped like the plan's, on as many threads as the merge will use. Nothing
of the output is made; what is written goes to one scratch file beside it, which goes again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import cuvee
from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.execute import EngineSettings
from cuvee.engine.footprint import footprint
from cuvee.engine.merge_op import run_op
from cuvee.engine.processes import can_fork
from cuvee.engine.rehearsal import sample, work_in_memory
from cuvee.errors import CuveeError
from cuvee.planning.cost import work_of
from cuvee.planning.machine import Kind, Machine, kind_of
from cuvee.planning.ops import Plan, TensorOp
from cuvee.tensors import disk

_TINY_ELEMENTS = 1 << 22  # a plan smaller than this is done sooner than it is measured
_KINDS = 3  # kinds of op that are run; the rest of a plan is small
_FIRST, _MOST = 1 << 19, 1 << 23  # elements of the first and of the largest sample, for each thread
_ENOUGH_SECONDS = 0.15
_CHUNK, _CHUNKS = 1 << 20, 128
_AT_MOST = 10.0  # seconds that starting an interpreter is waited for


def probe(plan: Plan, out: Path, settings: EngineSettings, located: Mapping[str, Path]) -> Machine:
    """The machine, measured with what `plan` asks of it; in about two seconds, or none if the plan is tiny.

    Args:
        plan: what is to be estimated.
        out: where it will go.
        settings: how it will run.
        located: files of the plan that are on this machine.

    """
    machine = Machine(cores=settings.workers)
    if plan.elements < _TINY_ELEMENTS:
        return machine
    main = _main(plan)
    found = footprint(plan, main, settings)  # first, while this process is what a merge's would be
    keep_freed_blocks(settings.worker_threads)
    files = [path for path in located.values() if path.is_file()]
    rates: dict[str, Any] = {"read": _reading(files), **_writing(out, files), "start_seconds": _starting()}
    return replace(
        machine,
        **{name: rate for name, rate in rates.items() if rate},
        seconds=_arithmetic(main, settings),
        process_bytes=(found.process or machine.process_bytes) + found.surveying,
        worker_bytes=found.worker or machine.worker_bytes,
        lane_bytes=found.lane,
        probed=True,
    )


def _starting() -> float:
    """Seconds until a new interpreter has loaded what a merge needs; 0 if none can be started."""
    home = Path(cuvee.__file__).parent.parent  # not where the user is: modules there would be loaded first
    command = [sys.executable, "-c", "import cuvee.api"]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=home, check=False, capture_output=True, timeout=_AT_MOST)  # noqa: S603 - us
    except (OSError, ValueError, subprocess.SubprocessError):  # an embedded Python has no executable of its own
        return 0.0
    return time.perf_counter() - begin if done.returncode == 0 else 0.0


def _reading(files: Sequence[Path]) -> float:
    """Bytes a second, from places spread over the inputs; 0 if none is here."""
    buffer = memoryview(bytearray(_CHUNK))
    seconds, count = 0.0, 0
    for path in files[:8]:
        with disk.descriptor_of(path) as descriptor:
            for offset in _offsets(path):
                begin = time.perf_counter()
                disk.read_into(descriptor, buffer, offset, path.name)
                seconds += time.perf_counter() - begin
                count += _CHUNK
    return count / seconds if count else 0.0


def _offsets(path: Path) -> Iterator[int]:
    room = path.stat().st_size - _CHUNK
    if room >= 0:
        yield from (room * i // 12 for i in range(12))


def _writing(out: Path, files: Sequence[Path]) -> dict[str, float]:
    """Bytes a second into a new file beside the output: written, made durable, and copied, where these can be."""
    source = next((path for path in files if path.stat().st_size >= _CHUNK * _CHUNKS), None)
    rates: dict[str, float] = {}
    data = memoryview(np.random.default_rng(0).bytes(_CHUNK))
    try:
        with _scratch(out) as (path, descriptor):
            half = _CHUNKS // 2
            for first in (0, half):  # of two the quicker: a disk that was asleep, or busy for a moment, is not slow
                written = _rate(lambda at: disk.write_at(descriptor, data, at, path), range(first, first + half))
                begin = time.perf_counter()
                disk.sync(descriptor, path)
                synced = _CHUNK * half / (time.perf_counter() - begin)
                rates |= {"write": max(written, rates.get("write", 0)), "durable": max(synced, rates.get("durable", 0))}
        if source is not None:
            with _scratch(out) as (path, descriptor), disk.descriptor_of(source) as reading:
                copy = partial(disk.copy_range, reading, target=descriptor, name=source.name, path=path)
                rates["copy"] = _rate(lambda at: copy(start=at, offset=at, count=_CHUNK), range(_CHUNKS))
    except (CuveeError, OSError):  # a place that cannot be written to is told when the merge starts
        return rates
    return rates


def _rate(step: Callable[[int], Any], numbers: range) -> float:
    begin = time.perf_counter()
    for number in numbers:
        step(number * _CHUNK)
    return _CHUNK * len(numbers) / (time.perf_counter() - begin)


@contextmanager
def _scratch(out: Path) -> Iterator[tuple[Path, int]]:
    folder = out.absolute()
    while not folder.is_dir():
        folder = folder.parent
    handle, name = tempfile.mkstemp(prefix=".cuvee-probe-", dir=folder)
    os.close(handle)
    path = Path(name)
    try:
        path.unlink()
        disk.preallocate(path, b"", _CHUNK * _CHUNKS)
        descriptor = disk.open_to_write(path)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
    finally:
        path.unlink(missing_ok=True)


def _main(plan: Plan) -> list[TensorOp]:
    """Of each of the kinds of op that most of the work is, the largest op."""
    work: dict[Kind, float] = {}
    largest: dict[Kind, TensorOp] = {}
    for op in plan.ops:
        if op.method is not None and op.size:
            kind = kind_of(op)
            work[kind] = work.get(kind, 0.0) + work_of(op)
            if kind not in largest or op.size > largest[kind].size:
                largest[kind] = op
    return [largest[kind] for kind in sorted(work, key=lambda kind: -work[kind])[:_KINDS]]


def _arithmetic(main: Sequence[TensorOp], settings: EngineSettings) -> dict[Kind, float]:
    """Core seconds a unit of work, by kind of op."""
    with threadpool_limits(limits=1, user_api="blas"), np.errstate(all="ignore"), _lanes(settings) as pool:
        return {kind_of(op): _seconds_each(op, pool, settings.workers) for op in main}


def _lanes(settings: EngineSettings) -> Executor:
    """What the merge's threads or processes are, to measure how much they hinder each other."""
    if settings.processes > 1 and can_fork():
        return ProcessPoolExecutor(settings.workers, mp_context=get_context("fork"))
    return ThreadPoolExecutor(settings.workers, initializer=partial(np.seterr, all="ignore"))


def _seconds_each(op: TensorOp, pool: Executor, lanes: int) -> float:
    """Core seconds for a unit of work, all lanes at it, each on a tensor of its own."""
    elements = _FIRST
    while True:
        part = sample(op, elements)
        spent = _spent(part, pool, lanes)
        if spent >= _ENOUGH_SECONDS or elements >= _MOST or part.size >= op.size:
            return min(spent, _spent(part, pool, lanes)) / work_of(part)  # the first may have met a slow moment
        elements = min(int(elements * max(1.5 * _ENOUGH_SECONDS / max(spent, 1e-6), 2.0)), _MOST)


def _spent(op: TensorOp, pool: Executor, lanes: int) -> float:
    return sum(pool.map(_timed, [op] * lanes, range(lanes))) / lanes


def _timed(op: TensorOp, number: int) -> float:
    work = work_in_memory(op, number)
    begin = time.perf_counter()
    run_op(op, work)
    return time.perf_counter() - begin
