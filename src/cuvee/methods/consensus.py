"""How sparse or dense task vectors become one: a sum, or a sum of those that agree on a sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cuvee.numerics.arrays import as_mask, sum_of, to_dtype, with_sign_of
from cuvee.numerics.block import Array
from cuvee.numerics.combine import divisor, weighted_sum

Elect = Literal["weighted", "unweighted"]
Consensus = Literal["sum", "count"]
_VANISHING = 1e-8
_BYTE = 256


def add_up(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    """The sum of w_i d_i, times `scale`; divided by the sum of the w_i if `normalize`."""
    return weighted_sum(deltas, weight, scale=scale, divide_by=divisor(weight) if normalize else 1.0)


def elect_signs(
    deltas: Sequence[Array],
    weight: Sequence[float],
    *,
    normalize: bool,
    scale: float,
    elect: Elect = "weighted",
    consensus_method: Consensus = "sum",
) -> Array:
    """The sum of those u_i = w_i d_i that have the elected sign, times `scale` (Yadav et al. 2023, section 3).

    The sign is that of sum_i u_i; of sum_i d_i if `elect` is `unweighted`; by `consensus_method` `count`, that of more
    models rather than of the larger sum. A tie counts as positive. If `normalize`, each element is divided by the sum
    of the w_i that agree there (by 1 where none does).
    """
    if elect == "weighted" and consensus_method == "sum":
        return _elect_by_sum(deltas, weight, normalize=normalize, scale=scale)
    votes = deltas if elect == "unweighted" else [d * share for d, share in zip(deltas, weight, strict=True)]
    if consensus_method == "count":
        votes = [as_mask(vote > 0, vote) - as_mask(vote < 0, vote) for vote in votes]
    result = elect_along(deltas, weight, sum_of(votes), normalize=normalize)
    return result if scale == 1.0 else result * scale


def _elect_by_sum(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    # Relative to the largest, equal weights are exactly 1: nothing is multiplied, and sums that cancel do so exactly.
    unit = max(map(abs, weight)) or 1.0
    votes = [delta if share == unit else delta * (share / unit) for delta, share in zip(deltas, weight, strict=True)]
    total = sum_of(votes)
    # Those that agree with the total T sum to sign(T) * (|T| + sum |u|) / 2: no masks, and no cancellation.
    result = with_sign_of(sum_of(map(abs, (*votes, total))), total)
    if not normalize:
        return result * (0.5 * scale * unit)
    result /= _agreeing_weight(votes, [share / unit for share in weight], total, unit)
    return result * (0.5 * scale)


def elect_along(deltas: Sequence[Array], weight: Sequence[float], direction: Array, *, normalize: bool) -> Array:
    """The sum of those u_i = w_i d_i that have the sign of `direction`, whatever decided it; zero counts as positive.

    If `normalize`, each element is divided by the sum of the w_i that agree there (by 1 where none does).
    """
    against = direction < 0
    shares = []  # of each model where it agrees, else 0: the sum and its divisor are made of the same arrays
    for delta, share in zip(deltas, weight, strict=True):
        agrees = (delta != 0) & ((delta < 0) == (against if share >= 0 else ~against))
        shares.append(as_mask(agrees, delta) * share)
    total = sum_of(share * delta for share, delta in zip(shares, deltas, strict=True))
    if not normalize:
        return total
    weights = sum_of(shares)
    return total / (weights + as_mask(abs(weights) < _VANISHING, total))


def _agreeing_weight(votes: Sequence[Array], weight: Sequence[float], total: Array, unit: float) -> Array:
    """The sum of the weights of the votes with the sign of `total`, in units of `unit`.

    Where none agrees, or the sum all but vanishes, it is 1: 1 / unit in these units.
    """
    against = total < 0
    agree = [(vote != 0) & ((vote < 0) == against) for vote in votes]
    # Bytes are counted four times faster than floats are added.
    if all(share == 1.0 for share in weight) and len(votes) < _BYTE:
        counts = sum_of(to_dtype(agrees, "uint8") for agrees in agree)
        return as_mask(counts + (counts == 0), total)
    weights = sum_of(as_mask(agrees, total) * share for agrees, share in zip(agree, weight, strict=True))
    return weights + as_mask(abs(weights) < _VANISHING / unit, total) * (1.0 / unit)
