"""How sparse or dense task vectors become one: a sum, or a sum of those that agree on a sign."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.numerics.arrays import as_mask, namespace
from cuvee.numerics.block import Array
from cuvee.numerics.combine import divisor, weighted_sum


def add_up(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    """Scale * sum_i w_i d_i, divided by sum_i w_i if `normalize`."""
    factor = scale / divisor(weight) if normalize else scale
    return weighted_sum(deltas, [factor * share for share in weight])


def elect(deltas: Sequence[Array], weight: Sequence[float], *, normalize: bool, scale: float) -> Array:
    """Scale * the sum of those u_i = w_i d_i whose sign is the sign of sum_i u_i (TIES, Yadav et al. 2023, section 3).

    A vanishing sum counts as positive. If `normalize`, each element is divided by the sum of the w_i that agree there
    (by 1 where none does).
    """
    # Relative to the largest weight, equal weights are exactly 1: nothing is multiplied, and sums that cancel do so
    # exactly.
    unit = max(weight, key=abs) or 1.0
    relative = [share / unit for share in weight]
    votes = [delta if share == 1.0 else delta * share for delta, share in zip(deltas, relative, strict=True)]
    total = votes[0] + votes[1] if len(votes) > 1 else votes[0]
    for vote in votes[2:]:
        total += vote
    direction = as_mask(total >= 0 if unit > 0 else total <= 0, total)  # of unit * total, which is the real sum
    direction *= 2.0 if unit > 0 else -2.0
    direction -= 1.0 if unit > 0 else -1.0
    return _agreeing(votes, direction, relative, normalize=normalize, scale=scale, unit=unit)


def _agreeing(
    votes: Sequence[Array], direction: Array, relative: Sequence[float], *, normalize: bool, scale: float, unit: float
) -> Array:
    """The elected sum. `direction` is +-1: the sign that the votes, which are in units of `unit`, must have."""
    xp = namespace(direction)
    zero = (
        xp.zeros((), dtype=direction.dtype, device=direction.device)
        if xp.__name__ != "numpy"
        else direction.dtype.type(0)
    )
    result, weights = None, None
    for vote, share in zip(votes, relative, strict=True):
        aligned = vote * direction
        if normalize:
            agrees = as_mask(aligned > 0, aligned)
            if share != 1.0:
                agrees *= share
            weights = agrees if weights is None else _add(weights, agrees)
        aligned = xp.maximum(aligned, zero)
        result = aligned if result is None else _add(result, aligned)
    result *= direction
    if normalize:
        # In units of the largest weight both sums lose the same factor; where none agrees the result is 0 whatever
        # divides it.
        weights += as_mask(abs(weights) * abs(unit) < 1e-8, weights)  # type: ignore[operator]
        result /= weights
        return result if scale == 1.0 else result * scale
    factor = scale * unit
    return result if factor == 1.0 else result * factor


def _add(total: Array, term: Array) -> Array:
    total += term
    return total
