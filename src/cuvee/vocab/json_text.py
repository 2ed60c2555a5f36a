"""JSON of many megabytes read and written fast: what tokenizers are kept in.

Pydantic's own parser does most files; Python's does what that refuses (odd encodings, half surrogates), so that what is
valid, and what is said of the rest, does not depend on which of them it was.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Pydantic is imported where it is used: most merges read no tokenizer.


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage is collected meanwhile: looking at half a million new objects again and again costs more than they."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parsed(text: bytes) -> Any:
    """What JSON text says.

    Raises:
        ValueError: if it is none.
        RecursionError: if it is nested too deep.

    """
    from pydantic_core import from_json

    with without_collections():
        try:
            return from_json(text, cache_strings=False)
        except ValueError:
            return json.loads(text)


def written(value: Any) -> str:
    """A value as JSON text in a single line, letters as they are.

    Raises:
        ValueError: if it holds what no file can: half a surrogate pair, or hundreds of levels.

    """
    from pydantic_core import to_json

    return to_json(value, inf_nan_mode="constants").decode()
