"""Linear combinations and the coefficients they need: where most of a merge's time goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cuvee.numerics.arrays import sum_of
from cuvee.numerics.block import Array

_VANISHING = 1e-8


def weighted_sum(arrays: Iterable[Array], weights: Sequence[float]) -> Array:
    """sum_i weights[i] * arrays[i], a fresh array of the arrays' shape and dtype."""
    return sum_of(array * weight for array, weight in zip(arrays, weights, strict=True))


def divisor(weights: Sequence[float]) -> float:
    """The sum of the weights, or 1 where it all but vanishes: what a weighted sum is divided by to normalise it."""
    total = math.fsum(weights)
    return total if abs(total) > _VANISHING else 1.0
