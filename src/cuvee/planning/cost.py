"""What a plan will take: memory, disk and time, estimated before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cuvee.errors import PlanError
from cuvee.methods.registry import get_method
from cuvee.planning.ops import Plan
from cuvee.tensors import disk

_PROCESS_BYTES = 75 << 20  # an interpreter with NumPy and Cuvee loaded, measured
_READ_RATE, _WRITE_RATE = 2.5e9, 1.2e9  # bytes a second from and to the page cache, one machine of two cores
_NS_READ, _NS_APPLY, _NS_SCAN = 0.4, 0.6, 1.6  # nanoseconds an element and model on one core, measured likewise


@dataclass(frozen=True)
class Cost:
    """An estimate; bytes and seconds."""

    bytes_read: int
    bytes_written: int
    peak_memory: int
    disk_free: int
    seconds: float


def estimate(plan: Plan, out: Path, *, threads: int, block_elements: int) -> Cost:
    """What running `plan` into `out` will take on a machine like the one this was measured on."""
    widest = max((len(op.sources) for op in plan.ops), default=1)
    memory = _PROCESS_BYTES + threads * block_elements * 4 * (2 * widest + 5)
    nanoseconds = 0.0
    for op in plan.ops:
        if op.method is not None:
            scanned = get_method(op.method).prepare is not None
            each = _NS_READ + _NS_APPLY + (_NS_SCAN + _NS_READ if scanned else 0.0)
            nanoseconds += op.size * len(op.sources) * each
    transfer = plan.bytes_read / _READ_RATE + plan.bytes_written / _WRITE_RATE
    seconds = 0.3 + transfer + nanoseconds / 1e9 / max(threads, 1)
    return Cost(plan.bytes_read, plan.bytes_written, memory, disk.free_bytes(out.absolute()), seconds)


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
