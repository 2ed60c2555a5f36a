"""What the processes of a merge will hold in memory at most, measured by doing a little of it.

A process is forked as the merge would fork one, its threads run the plan's own ops on made-up weights, and the kernel
says how large it became. So all is counted that a method and the engine allocate, and what the C library keeps of it.
Only what grows with tensors that are too large to be tried is reckoned: the searches for k-th largest values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.devices import NumpyBackend
from cuvee.engine.execute import EngineSettings, is_wide, pool_map
from cuvee.engine.merge_op import run_op, scan_of
from cuvee.engine.processes import can_fork
from cuvee.engine.rehearsal import sample, work_in_memory
from cuvee.engine.survey import is_surveyed
from cuvee.methods.registry import get_method
from cuvee.numerics.kept import AFFORDABLE
from cuvee.numerics.scan import Scan
from cuvee.numerics.select import Cut, working_bytes
from cuvee.planning.ops import Plan, TensorOp

_BLOCKS = 8  # of a large tensor: memory does not grow with more of them


@dataclass(frozen=True)
class Footprint:
    """Bytes, resident.

    Attributes:
        process: of the first process, before it merges; 0 where the system does not tell.
        worker: of each process that it forks, before that merges.
        lane: by which each thread at work makes its process grow.
        surveying: by which a scan of the whole model makes the first process grow.

    """

    process: int = 0
    worker: int = 0
    lane: int = 0
    surveying: int = 0


def footprint(plan: Plan, main: Sequence[TensorOp], settings: EngineSettings) -> Footprint:
    """The memory of `plan`'s processes, each of `settings.worker_threads` threads.

    Args:
        plan: what is to be estimated.
        main: of each kind of op that matters, the largest.
        settings: how the plan will run.

    """
    process = resident("VmHWM")
    threads = settings.worker_threads
    trials = [_Trial(large, _largest_kept(plan, large), _searching(large)) for large in main]
    if settings.processes > 1 and can_fork():
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            before, peak = pool.submit(_tried, trials, threads).result()
        worker = before
    else:
        before, peak = _tried(trials, threads)
        process, worker = max(process, before), before
    grown = max(peak - before, 0)
    surveyed = grown * settings.processes if settings.processes > 1 and any(map(is_surveyed, main)) else 0
    return Footprint(process, worker, grown // threads, surveyed)


@dataclass(frozen=True)
class _Trial:
    """Ops of one kind: the largest, the largest of which something may be kept from scan to merge, searches' bytes."""

    large: TensorOp
    kept: TensorOp | None
    searching: int


def _largest_kept(plan: Plan, like: TensorOp) -> TensorOp | None:
    if get_method(like.method or "").prepare is None:
        return None
    fitting = (op for op in plan.ops if op.method == like.method and len(op.sources) == len(like.sources))
    return max((op for op in fitting if 0 < op.size <= AFFORDABLE), key=lambda op: op.size, default=None)


def _tried(trials: Sequence[_Trial], threads: int) -> tuple[int, int]:
    """The size of this process before it ran the trials, and its peak; what large ops search in counted in."""
    keep_freed_blocks(threads)
    peak = before = resident("VmHWM", reset=True)
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=lambda: np.seterr(all="ignore")) as pool,
    ):
        for trial in trials:
            _run(sample(trial.large, _BLOCKS * NumpyBackend.block_elements), pool, threads)
            peak = max(peak, resident("VmHWM") + trial.searching)
            if trial.kept is not None:
                _run(sample(trial.kept, AFFORDABLE), pool, threads)
    return before, max(peak, resident("VmHWM"))


def _run(op: TensorOp, pool: ThreadPoolExecutor, threads: int) -> None:
    """The op as the engine would run it: with all threads if it is large, else one of its kind in each."""
    if is_wide(op, threads, NumpyBackend.block_elements):
        run_op(op, work_in_memory(op, 0), pool_map(pool))
    else:
        list(pool.map(lambda number: run_op(op, work_in_memory(op, number)), range(threads)))


def _searching(op: TensorOp) -> int:
    """Bytes that the op's searches for k-th largest values take: they grow with the tensor, so no sample shows them."""
    spec = get_method(op.method or "")
    if spec.prepare is None or op.size <= AFFORDABLE:
        return 0
    part = sample(op, NumpyBackend.block_elements)
    scan = _Watched(**vars(scan_of(part, work_in_memory(part, 0))))
    spec.prepare(scan, **{name: part.parameters[name] for name in spec.prepare_arguments})
    return max((working_bytes(op.size, shares, arrays) for shares, arrays in scan.searches), default=0)


class _Watched(Scan):
    """A scan that notes what is searched for: which share of the values is above each rank, and in how many arrays."""

    @cached_property
    def searches(self) -> list[tuple[tuple[float, ...], int]]:
        """Of each search."""
        return []

    def kth_largest(self, score: Callable[..., Any], ks: Sequence[int]) -> tuple[Cut, ...]:
        """As it is."""
        seen: list[int] = []

        def watched(block: Any) -> Sequence[Any]:
            arrays: Sequence[Any] = score(block)
            seen.append(len({id(array) for array in arrays}))
            return arrays

        found = super().kth_largest(watched, ks)
        self.searches.append((tuple(k / max(self.size, 1) for k in ks), max(seen, default=0)))
        return found


def resident(what: str, *, reset: bool = False) -> int:
    """The resident size of this process (VmRSS), or its peak (VmHWM) since the last reset; 0 where nothing tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what)), 0)
