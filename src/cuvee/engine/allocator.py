"""Keeps freed block memory with the process: glibc would hand every block back to the kernel and fault it in again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_* of malloc.h
_KEEP = 256 << 20
_LARGEST_BLOCK = 32 << 20  # glibc's own upper bound for the mmap threshold


def keep_freed_blocks() -> bool:
    """Whether the C library took the hint; without it a merge is slower and otherwise the same."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))
