"""The same geometry for every row (or column) at once: arrays of dot products in, arrays of coefficients out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cuvee.numerics.arrays import device_of, namespace
from cuvee.numerics.block import Array, Block


def row_dots(a: Array, b: Array) -> Array:
    """The dot product of each row of `a` with that of `b`, both `[rows, columns]`: float64 `[rows, 1]`."""
    xp = namespace(a)
    return xp.sum(xp.astype(a, xp.float64) * xp.astype(b, xp.float64), axis=-1, keepdims=True)


def of_block(found: Array, block: Block) -> Array:
    """What was found for the rows of a matrix, or of each matrix in a stack, for the rows of a block.

    Args:
        found: `[rows of a matrix, columns]`, or `[1, columns]` where all rows share it.
        block: rows `[rows, columns]` of all matrices end to end.

    """
    if found.shape[0] == 1:
        return found
    xp = namespace(found)
    rows, columns = block[0].shape
    first = block.start // columns
    return xp.take(found, xp.arange(first, first + rows, **device_of(found)) % found.shape[0], axis=0)


def softmax_divergence(base: Array, other: Array) -> Array:
    """KL(softmax(other) || softmax(base)) of each row, float64 `[rows]`: sum p (w_1 - w_0) - (lse_1 - lse_0)."""
    xp = namespace(base)
    w0, w1 = xp.astype(base, xp.float64), xp.astype(other, xp.float64)
    w0, w1 = w0 - xp.max(w0, axis=-1, keepdims=True), w1 - xp.max(w1, axis=-1, keepdims=True)
    p = xp.exp(w1)
    total = xp.sum(p, axis=-1)
    shift = xp.sum(p * (w1 - w0), axis=-1) / total
    return xp.clip(shift - xp.log(total / xp.sum(xp.exp(w0), axis=-1)), 0.0, None)


def mid_ranks(values: Array) -> Array:
    """Each value's rank in its row of `[rows, columns]`, the smallest being 0; equal ones share their mean rank."""
    xp = namespace(values)
    ordered = xp.sort(values, axis=-1)
    if not isinstance(values, np.ndarray):
        ends = (xp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        return xp.astype(sum(ends) - 1, values.dtype) / 2
    ranks = np.empty_like(values)
    for row, (line, known) in enumerate(zip(values, ordered, strict=True)):
        ranks[row] = known.searchsorted(line, "left") + known.searchsorted(line, "right") - 1
    ranks /= 2
    return ranks


def slerp_ratios(aa: Array, ab: Array, bb: Array, t: float, parallel: float) -> tuple[Array, Array]:
    """Slerp's coefficients for many pairs of vectors, from their dot products; see `geometry.slerp_coefficients`."""
    xp = namespace(aa)
    norms = xp.sqrt(xp.where(aa > 0, aa, xp.ones_like(aa))) * xp.sqrt(xp.where(bb > 0, bb, xp.ones_like(bb)))
    cosine = ab / norms
    straight = abs(cosine) > parallel
    angle = xp.acos(xp.where(straight, xp.zeros_like(cosine), cosine))
    sine = xp.sin(angle)
    first, second = xp.sin((1.0 - t) * angle) / sine, xp.sin(t * angle) / sine
    return xp.where(straight, xp.full_like(first, 1.0 - t), first), xp.where(straight, xp.full_like(first, t), second)


def stock_ratios(arrays: Sequence[Array]) -> Array:
    """Model stock's t for each row of N deltas `[rows, columns]`: `[rows, 1]`; see `geometry.stock_ratio`."""
    xp = namespace(arrays[0])
    count = len(arrays)
    lengths = [xp.sqrt(row_dots(array, array)) for array in arrays]
    total = xp.zeros_like(lengths[0])
    for i in range(count):
        for j in range(i):
            product = lengths[i] * lengths[j]
            safe = xp.where(product > 0, product, xp.ones_like(product))
            total += xp.where(product > 0, row_dots(arrays[i], arrays[j]) / safe, xp.zeros_like(product))
    mean = total / (count * (count - 1) / 2)
    denominator = 1.0 + (count - 1) * mean
    vanishes = abs(denominator) < 1e-12
    ratios = count * mean / xp.where(vanishes, xp.ones_like(mean), denominator)
    return xp.astype(xp.where(vanishes, xp.zeros_like(ratios), ratios), arrays[0].dtype)
