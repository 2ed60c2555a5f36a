"""The memory budget: how many threads and how large blocks fit it, or why a plan does not.

Everything that a merge keeps in memory is counted: processes, the blocks of every thread, and what exact selection
collects. What methods compute is not known here, only how their tensors are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from cuvee.engine.partition import row_length
from cuvee.errors import PlanError
from cuvee.methods.registry import get_method
from cuvee.numerics.kept import AFFORDABLE
from cuvee.numerics.masks import kept_bytes
from cuvee.numerics.scan import grain_of
from cuvee.numerics.select import most_bytes
from cuvee.planning.ops import Plan, TensorOp

_PROCESS_BYTES = 24 << 20  # anonymous memory of an interpreter with NumPy and Cuvee loaded, measured
_SMALLEST_BLOCK = 1 << 12


@dataclass(frozen=True)
class Allotment:
    """What fits: threads of each process, and elements of a block (a power of two)."""

    threads: int
    block_elements: int


@dataclass(frozen=True)
class _Need:
    """What one op takes, at least: bytes in each thread (those of an element, and in all), and beside the threads."""

    element: int
    lane: int
    beside: int


def allot(plan: Plan, memory: int, *, processes: int, threads: int, block_elements: int, working: int) -> Allotment:
    """The most threads, up to `threads` a process, and then the largest blocks that `memory` holds.

    Args:
        plan: what is to be done.
        memory: bytes that all processes together may take.
        processes: that share the work.
        threads: of each process.
        block_elements: elements of the blocks that suit the arithmetic best.
        working: bytes beyond which larger blocks bring nothing.

    Raises:
        PlanError: if not even one thread a process fits; it names the tensor that needs most.

    """
    needs = {op.name: _need(op) for op in plan.ops if op.method is not None}
    if not needs:
        return Allotment(threads, block_elements)
    own = _PROCESS_BYTES * (processes > 1)  # of the process that shares out the work
    beside = own + processes * (_PROCESS_BYTES + max(need.beside for need in needs.values()))
    name, largest = max(needs.items(), key=lambda item: item[1].lane)
    fitting = min((memory - beside) // (processes * largest.lane), threads)
    if fitting < 1:
        raise _too_small(plan, name, beside + processes * largest.lane, memory, processes)
    element = max(need.element for need in needs.values())
    affordable = min(memory - beside, working) // (element * fitting * processes)
    affordable = max(affordable, _SMALLEST_BLOCK)
    return Allotment(fitting, min(block_elements, 1 << (affordable.bit_length() - 1)))


def _need(op: TensorOp) -> _Need:
    spec = get_method(op.method or "")
    wide = "F64" in (op.dtype, *(source.dtype for source in op.sources))
    element = (8 if wide else 4) * (2 * len(op.sources) + 5)  # the arrays that a block lives in
    least = max(min(_SMALLEST_BLOCK, op.size), min(row_length(op.shape, spec.scope), op.size))
    if spec.prepare is None:
        return _Need(element, element * least, 0)
    grain = min(max(grain_of(len(op.sources)), least), op.size)  # fixed, so that sums do not depend on the budget
    kept = spec.keeps * op.size if op.size <= AFFORDABLE else 0
    if spec.wants != "deltas":
        return _Need(element, element * grain + kept, 0)
    masked = len(op.sources) - op.has_base
    kept = max(kept_bytes(op.size, masked), kept)
    return _Need(element, element * grain + kept, most_bytes(op.size, masked))


def _too_small(plan: Plan, tensor: str, needed: int, memory: int, processes: int) -> PlanError:
    op = next(op for op in plan.ops if op.name == tensor)
    spec = get_method(op.method or "")
    kept = {"elements": "blocks of any size", "rows": "whole rows", "matrix": "the whole tensor"}[spec.scope]
    fewer = " or lower --processes" if processes > 1 else ""
    return PlanError(
        f"{len(op.sources)} models at once do not fit the memory budget",
        expected=f"at least {-(-needed >> 20)} MiB, most of it for tensor {tensor!r} {list(op.shape)}: "
        f"{spec.name} holds {kept} of {len(op.sources)} models",
        found=f"{memory / (1 << 20):.0f} MiB",
        fix=f"raise --memory to {-(-needed >> 20)}MiB{fewer}",
        tensor=tensor,
        needed=needed,
    )
