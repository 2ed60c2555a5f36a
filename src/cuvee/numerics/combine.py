"""Linear combinations and the coefficients they need: where most of a merge's time goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cuvee.numerics.arrays import sum_of
from cuvee.numerics.block import Array, Block

_VANISHING = 1e-8


def weighted_sum(
    arrays: Iterable[Array], weights: Sequence[float], *, scale: float = 1.0, divide_by: float = 1.0
) -> Array:
    """The sum of weights[i] * arrays[i], times `scale` and divided by `divide_by`; of the arrays' shape and dtype.

    Equal weights are applied once, to the sum: fewer roundings, values that cancel do so exactly, and less to do.
    """
    first = weights[0]
    if all(weight == first for weight in weights):
        total = sum_of(arrays)
        factor = first * scale / divide_by
        if factor == 1.0:
            return total
        inverse = divide_by / (first * scale) if first * scale else 0.0
        # A mean of n is a division by n: multiplying by a rounded 1/n would not give n equal values back.
        return total / inverse if inverse.is_integer() and inverse else total * factor
    return sum_of(array * (weight * scale / divide_by) for array, weight in zip(arrays, weights, strict=True))


def shares(*, weight: Sequence[float], normalize: bool) -> tuple[float, ...]:
    """The weights, divided by their sum if `normalize`: what a weighted sum multiplies its arrays by."""
    return scaled_shares(weight=weight, normalize=normalize, lambda_=1.0)


def scaled_shares(*, weight: Sequence[float], normalize: bool, lambda_: float) -> tuple[float, ...]:
    """The same times `lambda_`."""
    by = divisor(weight) if normalize else 1.0
    return tuple(each * lambda_ / by for each in weight)


def divisor(weights: Sequence[float]) -> float:
    """The sum of the weights, or 1 where it all but vanishes: what a weighted sum is divided by to normalise it."""
    total = math.fsum(weights)
    return 1.0 if vanishes(total) else total


def vanishes(total: float) -> bool:
    """Whether a sum of weights is nothing but rounding."""
    return abs(total) <= _VANISHING


def variance_of(block: Block) -> Array:
    """The variance across the block's arrays, element by element."""
    mean = sum_of(block) / len(block)
    gap = block[0] - mean
    total = gap * gap
    for array in block.arrays[1:]:
        gap = array - mean
        gap *= gap
        total += gap
    total /= len(block)
    return total
