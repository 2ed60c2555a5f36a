"""Plain lines on standard error: warnings and notes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def warnings(texts: Iterable[str]) -> None:
    """Warnings, on standard error."""
    for text in texts:
        sys.stderr.write(f"warning: {text}\n")


def meaningless(options: Sequence[str]) -> None:
    """One line for options that are accepted and do nothing."""
    if options:
        sys.stderr.write(f"note: {', '.join(options)} no longer mean anything here and are ignored\n")
