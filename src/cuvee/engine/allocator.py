"""Keeps freed block memory with the process: glibc would hand every block back to the kernel and fault it in again.

What is larger than any block is kept for a whole tensor, and does go back with it. And threads share as many heaps as
there are threads at work: each worker thread that ends and is followed by another would otherwise leave a heap behind.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_* of malloc.h
_KEEP = 256 << 20
_LARGEST_BLOCK = 4 << 20


def keep_freed_blocks(threads: int) -> bool:
    """Whether the C library took the hints for so many threads at work; without it a merge is slower or larger."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return False
    hints = {_MMAP_THRESHOLD: _LARGEST_BLOCK, _TRIM_THRESHOLD: _KEEP, _ARENA_MAX: threads}
    return all(mallopt(hint, value) for hint, value in hints.items())
