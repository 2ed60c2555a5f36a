"""Task arithmetic whose coefficients are worked out from the task vectors' norms: MetaGPT and NAN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, Over, Prepared
from cuvee.numerics.block import Array
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.scan import Scan

Coefficients = tuple[float, ...]


def by_square(scan: Scan) -> Coefficients:
    """Each delta's share of the sum of squares; equal shares if all deltas are zero."""
    return _shares(scan.squares(), lambda squares: squares)


def by_inverse(scan: Scan) -> Coefficients:
    """Each delta's share of the sum of inverse norms; a delta that is zero has none, if others are not."""
    return _shares(scan.squares(), lambda squares: squares**-0.5)


def _shares(
    squares: np.ndarray[tuple[int], np.dtype[np.float64]],
    score: Callable[[np.ndarray[tuple[int], np.dtype[np.float64]]], np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> Coefficients:
    used = squares > 0
    if not used.any():
        return (1.0 / len(squares),) * len(squares)
    scores = np.zeros(len(squares))
    scores[used] = score(squares[used] / squares.max())  # relative: squares of small norms must not underflow
    return tuple(map(float, scores / scores.sum()))


@merge_method(
    "metagpt",
    base="required",
    models=(1, None),
    prepare=by_square,
    reference="Zhou et al. 2024, MetaGPT: merging large language models using model exclusive task arithmetic, "
    "arXiv:2406.11385",
)
def metagpt(
    deltas: Deltas, shares: Prepared[Coefficients], *, lambda_: float = 1.0, norm_scope: Over = "model"
) -> Array:
    """Task arithmetic with coefficients that follow from the task vectors' sizes, nothing to tune.

    W_0 + lambda * sum_i c_i d_i with c_i = ||d_i||^2 / sum_k ||d_k||^2, the minimum of an upper bound of the summed
    losses where the loss is nearly linear around W_0 and the task vectors are orthogonal. A model that moved further
    counts more.

    Use it for two or three models whose task vectors are of similar size, when there is nothing to validate on.

    Args:
        lambda_: Scales the merged task vector; 1 in the paper.
        norm_scope: Whether the norms are those of the whole `model`, as in the paper, or of each `tensor`.
    """
    return weighted_sum(deltas, shares, scale=lambda_)


@merge_method(
    "nan",
    base="required",
    models=(1, None),
    prepare=by_inverse,
    reference="Si et al. 2025, NAN: a training-free solution to coefficient estimation in model merging, "
    "arXiv:2505.16148",
)
def nan(deltas: Deltas, shares: Prepared[Coefficients], *, lambda_: float = 1.0, norm_scope: Over = "model") -> Array:
    """Task arithmetic in which every model has the same say, however far it moved from the base.

    W_0 + lambda * sum_i c_i d_i with c_i = (1 / ||d_i||) / sum_k (1 / ||d_k||): coefficients estimated by inverse
    norms. Choices made here: the norms are those of the task vectors, and the coefficients sum to one; raise `lambda`
    for merges of many models. A model that did not move at all takes no share.

    Use it where one model moved much further than the others and would drown them, when there is nothing to validate
    on.

    Args:
        lambda_: Scales the merged task vector.
        norm_scope: Whether the norms are those of the whole `model` or of each `tensor`.
    """
    return weighted_sum(deltas, shares, scale=lambda_)
