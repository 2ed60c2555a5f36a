"""How sparse or dense task vectors become one: a sum, or a sum of those that agree on a sign."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.numerics.arrays import as_mask, sum_of, to_dtype, with_sign_of
from cuvee.numerics.block import Array
from cuvee.numerics.combine import divisor, weighted_sum


def add_up(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    """The sum of w_i d_i, times `scale`; divided by the sum of the w_i if `normalize`."""
    return weighted_sum(deltas, weight, scale=scale, divide_by=divisor(weight) if normalize else 1.0)


def elect(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    """The sum of those u_i = w_i d_i that have the sign of sum_i u_i, times `scale` (Yadav et al. 2023, section 3).

    A vanishing sum counts as positive. If `normalize`, each element is divided by the sum of the w_i that agree there
    (by 1 where none does).
    """
    # Relative to the largest, equal weights are exactly 1: nothing is multiplied, and sums that cancel do so exactly.
    unit = max(map(abs, weight)) or 1.0
    votes = [delta if share == unit else delta * (share / unit) for delta, share in zip(deltas, weight, strict=True)]
    total = sum_of(votes)
    # Those that agree with the total T sum to sign(T) * (|T| + sum |u|) / 2: no masks, and no cancellation.
    result = with_sign_of(sum_of(map(abs, (*votes, total))), total)
    if not normalize:
        return result * (0.5 * scale * unit)
    result /= _agreeing_weight(votes, [share / unit for share in weight], total, 1e-8 / unit)
    return result * (0.5 * scale)


def elect_weighted(deltas: Sequence[Array], weight: Sequence[float]) -> Array:
    """The weighted mean of those d_i that have the sign of sum_i d_i; 0 where none has."""
    against = sum_of(deltas) < 0
    masks = [as_mask((d != 0) & ((d < 0) == against), d) for d in deltas]
    total = sum_of(d * mask * share for d, mask, share in zip(deltas, masks, weight, strict=True))
    weights = sum_of(mask * share for mask, share in zip(masks, weight, strict=True))
    return total / (weights + (weights == 0))


def _agreeing_weight(votes: Sequence[Array], weight: Sequence[float], total: Array, vanishing: float) -> Array:
    """The sum of the weights of the votes with the sign of `total`; 1 where none agrees or the sum all but vanishes."""
    against = total < 0
    agree = [(vote != 0) & ((vote < 0) == against) for vote in votes]
    if all(share == 1.0 for share in weight):  # bytes are counted four times faster than floats are added
        counts = sum_of(to_dtype(agrees, "uint8") for agrees in agree)
        return as_mask(counts + (counts == 0), total)
    weights = sum_of(as_mask(agrees, total) * share for agrees, share in zip(agree, weight, strict=True))
    return weights + as_mask(abs(weights) < vanishing, total)
