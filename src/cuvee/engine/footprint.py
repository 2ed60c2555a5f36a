"""What the processes of a merge will hold in memory at most, measured by doing a little of it.

A process is forked as the merge would fork one, its threads run the plan's own ops on made-up weights, and the kernel
says how large it became. So all is counted that a method and the engine allocate, and what the C library keeps of it.
Only what grows with tensors that are too large to be tried is reckoned: masks, and searches for k-th largest values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cuvee.engine.allocator import keep_freed_blocks
from cuvee.engine.devices import NumpyBackend
from cuvee.engine.execute import EngineSettings, is_wide, pool_map
from cuvee.engine.memory import resident
from cuvee.engine.merge_op import run_op, scan_of
from cuvee.engine.processes import can_fork
from cuvee.engine.rehearsal import sample, work_in_memory
from cuvee.engine.survey import is_surveyed
from cuvee.methods.registry import get_method
from cuvee.numerics.kept import AFFORDABLE
from cuvee.numerics.masks import KeptMasks, kept_bytes
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
    trials = [_Trial(large, _largest_kept(plan, large)) for large in main]
    forked = settings.processes > 1 and can_fork()
    if forked:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            before, large, kept = pool.submit(_tried, trials, threads).result()
        worker = before
    else:
        before, large, kept = _tried(trials, threads)
        process, worker = max(process, before), before
    growing = _of_largest(plan, main, settings.processes if forked else 1)
    grown = [max(large + more, kept) - before for more in growing]
    surveyed = sum(grown) if forked and any(map(is_surveyed, main)) else 0
    return Footprint(process, worker, sum(grown) // (len(grown) * threads), surveyed)


@dataclass(frozen=True)
class _Trial:
    """Ops of one kind: the largest, and the largest of those whose scores may be kept from scan to merge."""

    large: TensorOp
    kept: TensorOp | None


def _largest_kept(plan: Plan, like: TensorOp) -> TensorOp | None:
    if get_method(like.method or "").prepare is None:
        return None
    fitting = (op for op in plan.ops if op.method == like.method and len(op.sources) == len(like.sources))
    return max((op for op in fitting if 0 < op.size <= AFFORDABLE), key=lambda op: op.size, default=None)


def _of_largest(plan: Plan, main: Sequence[TensorOp], processes: int) -> list[int]:
    """What grows with the tensor, in each process while all are at the largest ones: a tensor is one process's."""
    bytes_of = [_growing(large) for large in main]
    each = (
        grows(op.size)
        for large, grows in zip(main, bytes_of, strict=True)
        for op in plan.ops
        if op.method == large.method
    )
    largest = sorted(each, reverse=True)[:processes]
    return [*largest, *[0] * (processes - len(largest))]


def _tried(trials: Sequence[_Trial], threads: int) -> tuple[int, int, int]:
    """The size of this process before it ran the trials, its peak in large ops, and in those that keep scores."""
    keep_freed_blocks(threads)
    large = before = resident("VmHWM", reset=True)
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=lambda: np.seterr(all="ignore")) as pool,
    ):
        for trial in trials:
            _run(sample(trial.large, _BLOCKS * NumpyBackend.block_elements), pool, threads)
        large = max(large, resident("VmHWM"))
        for trial in trials:
            if trial.kept is not None:
                _run(sample(trial.kept, AFFORDABLE), pool, threads)
    return before, large, max(large, resident("VmHWM"))


def _run(op: TensorOp, pool: ThreadPoolExecutor, threads: int) -> None:
    """The op as the engine would run it: with all threads if it is large, else one of its kind in each."""
    if is_wide(op, threads, NumpyBackend.block_elements):
        run_op(op, work_in_memory(op, 0), pool_map(pool))
    else:
        list(pool.map(lambda number: run_op(op, work_in_memory(op, number)), range(threads)))


def _growing(op: TensorOp) -> Callable[[int], int]:
    """Bytes of searches for k-th largest values and of masks in an op like this one, by the size of its tensor."""
    spec = get_method(op.method or "")
    if spec.prepare is None:
        return lambda _: 0
    part = sample(op, NumpyBackend.block_elements)
    scan = _Watched(**vars(scan_of(part, work_in_memory(part, 0))))
    prepared = spec.prepare(scan, **{name: part.parameters[name] for name in spec.prepare_arguments})
    models = scan.models if isinstance(getattr(prepared, "remembered", None), KeptMasks) else 0

    def grows(size: int) -> int:
        if size <= AFFORDABLE:  # which was tried
            return 0
        searched = (working_bytes(size, shares, arrays) for shares, arrays in scan.searches)
        return kept_bytes(size, models) + max(searched, default=0)

    return grows


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
