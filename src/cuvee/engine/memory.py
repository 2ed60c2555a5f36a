"""How much memory this process and its workers take, as the system tells it."""

from __future__ import annotations

import sys
from pathlib import Path


def resident(what: str, *, reset: bool = False) -> int:
    """The resident size of this process (VmRSS), or its peak (VmHWM) since the last reset; 0 where nothing tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what)), 0)


def peak_memory(workers: int) -> int:
    """The largest resident size of this process, and `workers` bytes more; 0 where nothing tells."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    # Linux counts what the program that started this one used in ru_maxrss, but not in VmHWM.
    own = resident("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _unit()
    return own + workers


def _unit() -> int:
    return 1 if sys.platform == "darwin" else 1024
