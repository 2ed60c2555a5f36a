"""What a plan will take on a machine: memory, disk and time, estimated before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cuvee.errors import PlanError
from cuvee.methods.registry import get_method
from cuvee.planning.machine import Kind, Machine, kind_of
from cuvee.planning.ops import Plan, TensorOp
from cuvee.tensors import disk

_END_SECONDS = 0.1  # the files beside the weights, the check of headers, the rename
# Nanoseconds an element and model on one core, where nothing was measured.
_NS_READ, _NS_APPLY, _NS_SCAN = 0.4, 0.6, 1.6


@dataclass(frozen=True)
class Cost:
    """An estimate; bytes and seconds.

    Attributes:
        bytes_read: of all sources.
        bytes_written: of all output files.
        peak_memory: of one process, resident.
        disk_free: on the file system of the output.
        seconds: of wall time, downloads not counted.
        machine: which this is for.

    """

    bytes_read: int
    bytes_written: int
    peak_memory: int
    disk_free: int
    seconds: float
    machine: Machine


def estimate(
    plan: Plan, out: Path, *, machine: Machine, processes: int, block_elements: int, opening: float = 0.0
) -> Cost:
    """What running `plan` into `out` will take.

    A core that reads or writes does not compute meanwhile, and storage is no faster for having more of them; copies are
    the kernel's work alone, and wait while what was copied before goes to the disk. What is merged goes there
    meanwhile.
    Every node does its share of all of them.

    Args:
        plan: the merge.
        out: where it goes.
        machine: where it runs, all its cores at work.
        processes: that share a node's cores.
        block_elements: elements that a thread looks at together.
        opening: seconds that reading headers and tokenizers and making the plan takes.

    """
    widest = max((len(op.sources) for op in plan.ops), default=1)
    merged = [op for op in plan.ops if op.method is not None]
    block = min(block_elements, max((op.size for op in merged), default=0))
    lane = machine.lane_bytes if machine.probed else block * 4 * (2 * widest + 5)
    reading = sum(op.bytes_read for op in merged) / machine.read
    written = sum(op.nbytes for op in merged)
    writing, durable = written / machine.write, written / machine.durable
    busy = max((core_seconds(merged, machine) + reading + writing) / machine.cores, reading, writing, durable)
    copied = sum(op.nbytes for op in plan.ops if op.method is None and op.derivation is None)
    copying = copied / machine.copy + copied / machine.durable
    return Cost(
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        peak_memory=machine.process_bytes + (processes > 1) * processes * machine.worker_bytes + machine.cores * lane,
        disk_free=disk.free_bytes(out.absolute()),
        seconds=machine.start_seconds + opening + _END_SECONDS + (busy + copying) / machine.nodes,
        machine=machine,
    )


def core_seconds(ops: Iterable[TensorOp], machine: Machine) -> float:
    """What one core would take for the arithmetic of these ops, the moving of their bytes through memory included."""
    per_element: dict[Kind, float] = {}
    total = 0.0
    for op in ops:
        kind = kind_of(op)
        if kind not in per_element:
            per_element[kind] = machine.seconds.get(kind) or _unmeasured(op, machine)
        total += work_of(op) * per_element[kind]
    return total


def work_of(op: TensorOp) -> float:
    """What an op's cost grows with: its elements; for methods that decompose a matrix, its shorter side as well."""
    if op.method is not None and get_method(op.method).scope == "matrix" and len(op.shape) > 1:
        return float(op.size) * min(op.shape[-1], op.size // max(op.shape[-1], 1))
    return float(op.size)


def _unmeasured(op: TensorOp, machine: Machine) -> float:
    """Seconds a unit of work: as the dearest kind that was measured, else from the figures above."""
    if machine.seconds:
        return max(machine.seconds.values())
    scanned = op.method is not None and get_method(op.method).prepare is not None
    each = _NS_READ + _NS_APPLY + (_NS_SCAN + _NS_READ if scanned else 0.0)
    return len(op.sources) * each * 1e-9


def check_disk(plan: Plan, out: Path, reserved: int = 0) -> None:
    """Raises a PlanError if the output will not fit on its disk, of which it has `reserved` bytes already."""
    free = disk.free_bytes(out.absolute()) + reserved
    if plan.bytes_written > free:
        raise PlanError(
            f"not enough disk space for {out}",
            expected=f"{plan.bytes_written / 1e9:.2f} GB free",
            found=f"{free / 1e9:.2f} GB free",
            fix=f"free {(plan.bytes_written - free) / 1e9:.2f} GB more, or choose an output on another disk",
        )
