"""How a tensor is cut into blocks: by its shape, its method's scope and a size, never by what is in it."""

from __future__ import annotations

import math

from cuvee.methods.spec import Scope
from cuvee.numerics.scan import Range


def row_length(shape: tuple[int, ...], scope: Scope) -> int:
    """Elements that must stay together: 1 for `elements`; the last dimension for `rows`; everything for `matrix`.

    A vector is one row.
    """
    if scope == "elements":
        return 1
    if scope == "matrix":
        return max(math.prod(shape), 1)
    return max(shape[-1], 1) if shape else 1


def ranges(shape: tuple[int, ...], scope: Scope, block_elements: int, grain: int = 1) -> tuple[Range, ...]:
    """(start, stop) of flat indices: whole rows, about `block_elements` each, at least one row.

    They start at multiples of `grain`, a number of whole rows, if that many elements are no more than a block.
    """
    size, row = math.prod(shape), row_length(shape, scope)
    if row < grain <= block_elements and grain % row == 0:
        row = grain
    step = max(block_elements // row, 1) * row
    return tuple((start, min(start + step, size)) for start in range(0, size, step))
