"""A short look at this machine, so that estimates are about it: reading, writing, copying, and the plan's own methods.

The methods run for real, on blocks in memory shaped like the plan's, on as many threads as the merge will use. Nothing
of the output is made; what is written goes to one scratch file beside it, which goes again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.devices import NumpyBackend
from cuvee.engine.execute import EngineSettings
from cuvee.engine.merge_op import Work, run_op, scan_of
from cuvee.engine.processes import can_fork
from cuvee.errors import CuveeError
from cuvee.methods.registry import get_method
from cuvee.numerics.scan import Scan
from cuvee.numerics.select import Cut, working_bytes
from cuvee.planning.cost import work_of
from cuvee.planning.machine import Kind, Machine, kind_of
from cuvee.planning.ops import Plan, TensorOp
from cuvee.tensors import disk
from cuvee.tensors.dtypes import is_float, itemsize, numpy_dtype
from cuvee.tensors.reader import FileReader
from cuvee.tensors.sources import stored_pieces

_TINY_ELEMENTS = 1 << 22  # a plan smaller than this is done sooner than it is measured
_KINDS = 3  # kinds of op that are run; the rest of a plan is small
_FIRST, _MOST = 1 << 19, 1 << 23  # elements of the first and of the largest sample, for each thread
_ENOUGH_SECONDS = 0.15
_MATRIX_SIDE = 512
_POOL_BYTES = 1 << 20  # of made-up weights for a thread
_CHUNK, _CHUNKS = 1 << 20, 48


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
    resident = _resident("VmRSS")
    keep_freed_blocks()
    files = [path for path in located.values() if path.is_file()]
    read = _reading(files)
    written, copied = _writing(out, files)
    seconds, lane, shared = _arithmetic(plan, settings)
    return replace(
        machine,
        read=read or machine.read,
        write=written or machine.write,
        copy=copied or machine.copy,
        seconds=seconds,
        process_bytes=(resident or machine.process_bytes) + shared,
        lane_bytes=lane,
        probed=True,
    )


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


def _writing(out: Path, files: Sequence[Path]) -> tuple[float, float]:
    """Bytes a second into a new file beside the output, written and copied; 0 where that cannot be."""
    source = next((path for path in files if path.stat().st_size >= _CHUNK * _CHUNKS), None)
    try:
        with _scratch(out) as path:
            descriptor = disk.open_to_write(path)
            try:
                data = memoryview(np.random.default_rng(0).bytes(_CHUNK))
                written = _rate(lambda at: disk.write_at(descriptor, data, at, path))
                if source is None:
                    return written, 0.0
                with disk.descriptor_of(source) as reading:
                    copy = partial(disk.copy_range, reading, target=descriptor, name=source.name, path=path)
                    return written, _rate(lambda at: copy(start=at, offset=at, count=_CHUNK))
            finally:
                os.close(descriptor)
    except (CuveeError, OSError):  # a place that cannot be written to is told when the merge starts
        return 0.0, 0.0


def _rate(step: Callable[[int], Any]) -> float:
    begin = time.perf_counter()
    for number in range(_CHUNKS):
        step(number * _CHUNK)
    return _CHUNK * _CHUNKS / (time.perf_counter() - begin)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    folder = out.absolute()
    while not folder.is_dir():
        folder = folder.parent
    handle, name = tempfile.mkstemp(prefix=".cuvee-probe-", dir=folder)
    os.close(handle)
    path = Path(name)
    try:
        path.unlink()
        disk.preallocate(path, b"", _CHUNK * _CHUNKS)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _arithmetic(plan: Plan, settings: EngineSettings) -> tuple[dict[Kind, float], int, int]:
    """Of the plan's main kinds of op: core seconds a unit of work; bytes of a thread, and bytes beside all threads."""
    work: dict[Kind, float] = {}
    largest: dict[Kind, TensorOp] = {}
    for op in plan.ops:
        if op.method is not None and op.size:
            kind = kind_of(op)
            work[kind] = work.get(kind, 0.0) + work_of(op)
            if kind not in largest or op.size > largest[kind].size:
                largest[kind] = op
    main = sorted(work, key=lambda kind: -work[kind])[:_KINDS]
    lane = shared = 0
    with threadpool_limits(limits=1, user_api="blas"), np.errstate(all="ignore"):
        with _lanes(settings) as pool:
            seconds = {kind: _seconds_each(largest[kind], pool, settings.workers) for kind in main}
        for kind in main:
            lane = max(lane, _growth(largest[kind]))
            shared = max(shared, _searching(largest[kind]))
    return seconds, lane, shared


def _lanes(settings: EngineSettings) -> Executor:
    """What the merge's threads or processes are, to measure how much they hinder each other."""
    if settings.processes > 1 and can_fork():
        return ProcessPoolExecutor(settings.workers, mp_context=get_context("fork"))
    return ThreadPoolExecutor(settings.workers, initializer=partial(np.seterr, all="ignore"))


def _seconds_each(op: TensorOp, pool: Executor, lanes: int) -> float:
    """Core seconds for a unit of work, all lanes at it, each on a tensor of its own."""
    elements = _FIRST
    while True:
        sample = _sample(op, elements)
        spent = sum(pool.map(_timed, [sample] * lanes, range(lanes))) / lanes
        if spent >= _ENOUGH_SECONDS or elements >= _MOST or sample.size >= op.size:
            return spent / work_of(sample)
        elements = min(int(elements * max(1.5 * _ENOUGH_SECONDS / max(spent, 1e-6), 2.0)), _MOST)


def _timed(op: TensorOp, number: int) -> float:
    work = _in_memory(op, number)
    begin = time.perf_counter()
    run_op(op, work)
    return time.perf_counter() - begin


def _growth(op: TensorOp) -> int:
    """Bytes by which one thread at work makes this process grow; 0 where the system does not tell."""
    sample = _sample(op, 8 * NumpyBackend.block_elements)
    work = _in_memory(sample, 0)
    before = _resident("VmHWM", reset=True)
    run_op(sample, work)
    return max(_resident("VmHWM") - before, 0) if before else 0


def _searching(op: TensorOp) -> int:
    """Bytes that the op's searches for k-th largest values take: they grow with the tensor, so no sample shows them."""
    spec = get_method(op.method or "")
    if spec.prepare is None:
        return 0
    sample = _sample(op, _FIRST)
    scan = _Watched(**vars(scan_of(sample, _in_memory(sample, 0))))
    spec.prepare(scan, **{name: op.parameters[name] for name in spec.prepare_arguments})
    return max((working_bytes(op.size, count) for count in scan.searches), default=0)


class _Watched(Scan):
    """A scan that notes how many values are searched for at once."""

    @cached_property
    def searches(self) -> list[int]:
        """Of each search."""
        return []

    def kth_largest(self, score: Callable[..., Any], ks: Sequence[int]) -> tuple[Cut, ...]:
        """As it is."""
        self.searches.append(len(ks))
        return super().kth_largest(score, ks)


def _sample(op: TensorOp, elements: int) -> TensorOp:
    """The op, on the first rows of its tensor."""
    if get_method(op.method or "").scope == "matrix":
        shape = tuple(min(length, _MATRIX_SIDE) for length in op.shape)
    elif len(op.shape) > 1:
        columns = op.shape[-1]
        shape = (max(min(elements // max(columns, 1), op.size // max(columns, 1)), 1), columns)
    else:
        shape = (min(elements, op.size),)
    over = get_method(op.method or "").over
    alone = {**op.parameters, over: "tensor"} if over else op.parameters  # a scan of the whole model would be one
    return replace(op, shape=shape, offset=0, shard=0, parameters=alone)


def _in_memory(op: TensorOp, number: int) -> Work:
    return Work(
        reader=_Pool(op, number),
        output=_Nowhere(),  # type: ignore[arg-type]
        backend=NumpyBackend(),
        seed=number,
        block_elements=NumpyBackend.block_elements,
        allow_nonfinite=True,
        model_names=tuple(map(str, range(max(op.models) + 1))),
        advance=lambda _: None,
        check_stop=lambda: None,
    )


class _Pool(FileReader):
    """A reader of made-up weights: the same small random pool again and again, a little different for each file."""

    def __init__(self, op: TensorOp, number: int) -> None:
        super().__init__()
        random = np.random.default_rng(number)
        count = _POOL_BYTES // 2 // len(op.sources)
        base = random.standard_normal(count, np.float32) * 0.02
        self._pools: dict[str, tuple[int, np.ndarray[Any, Any]]] = {}
        for position, source in enumerate(op.sources):
            moved = base + random.standard_normal(count, np.float32) * (0.002 * bool(position))
            for piece in stored_pieces(source):
                if piece.file not in self._pools:
                    dtype = numpy_dtype(piece.dtype)
                    values = moved.astype(dtype) if is_float(piece.dtype) else np.ones(count, dtype)
                    self._pools[piece.file] = (piece.offset % itemsize(piece.dtype), values.view(np.uint8))

    def read(self, file: str, offset: int, count: int) -> np.ndarray[Any, Any]:
        buffer = np.empty(count, np.uint8)
        self.read_into(file, offset, memoryview(buffer))  # type: ignore[arg-type]
        return buffer

    def read_into(self, file: str, offset: int, target: memoryview) -> None:
        shift, pool = self._pools[file]
        place, done, size = (offset - shift) % pool.size, 0, len(target)
        array = np.frombuffer(target, np.uint8)
        while done < size:
            step = min(size - done, pool.size - place)
            array[done : done + step] = pool[place : place + step]
            done, place = done + step, 0


class _Nowhere:
    """An output that keeps nothing."""

    def write(self, shard: int, offset: int, array: np.ndarray[Any, Any]) -> None:  # noqa: ARG002
        np.ascontiguousarray(array)


def _resident(what: str, *, reset: bool = False) -> int:
    """The resident size of this process (VmRSS), or its peak (VmHWM) since the last reset; 0 where nothing tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what)), 0)
