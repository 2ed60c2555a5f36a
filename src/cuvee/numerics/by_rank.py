"""Draws whose probability rises with an element's rank in its row, without sorting the row.

A rank is itself a probability: that a partner, drawn from the others of the row, is smaller. So an element that is
compared with one such partner survives as often as its rank says, whatever the values are.
"""

from __future__ import annotations

import math

from cuvee.numerics.arrays import namespace
from cuvee.numerics.block import Array
from cuvee.numerics.random import derive_key, draw_below, hashed, uniform_bytes


def draw_by_rank(values: Array, low: float, high: float, key: int, start: int) -> Array:
    """A boolean array of the shape of `values`, `[rows, columns]`, each element true on its own by its rank r.

    The probability is low + (high - low) r / (columns - 1), where the smallest of a row has r = 0 and equal values
    share the mean of their ranks. Eight bits a draw tell most elements apart: those below `low` are true, those above
    `high` are not. The others draw a place on a line from 32 further bits: on its left they are true, on its right
    not, and between them the line is the row's other elements, one of which they must exceed (by a coin if equal).

    Args:
        values: whole rows of at least two elements.
        low: the probability of the smallest, between 0 and 1.
        high: the probability of the largest, between `low` and 1.
        key: 64 bits.
        start: the flat index of the first element.
    """
    xp = namespace(values)
    others = values.shape[1] - 1
    first, last = math.floor(low * 2**8), math.ceil(high * 2**8)
    if low >= high or not others:
        return draw_below((low + high) / 2, key, start, values)
    draws = uniform_bytes(key, start, values)
    kept = draws < first
    (open_,) = xp.nonzero((draws >= first) & (draws <= last - 1))
    bits = hashed(open_ + start, derive_key(key, "rank"))
    step = others / (high * 2**8 - low * 2**8)  # others of the row for each of the eight bits' values
    place = xp.astype(bits, xp.float64) * ((last - first) * step / 2**32) - (low * 2**8 - first) * step
    flat = xp.reshape(values, (-1,))
    own = xp.take(flat, open_)
    other = xp.take(flat, _partners(xp.clip(place, 0, others - 1), open_, values.shape))
    larger = (own > other) | ((own == other) & xp.astype(bits & 1, xp.bool))
    kept[open_] = (place < 0) | (larger & (place < others))
    return xp.reshape(kept, values.shape)


def _partners(place: Array, elements: Array, shape: tuple[int, ...]) -> Array:
    """The flat index of the element at each place among the others of the same row."""
    xp = namespace(place)
    short = xp.int32 if math.prod(shape) < 2**31 else xp.int64  # NumPy divides short integers many times faster
    elements = xp.astype(elements, short)
    first = elements // shape[1] * shape[1]
    partners = xp.astype(place, short)
    partners += xp.astype(partners >= elements - first, short)  # an element is not its own partner
    partners += first
    return partners
