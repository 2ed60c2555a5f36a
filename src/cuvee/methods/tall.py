"""Consensus merging with TALL masks: only what matters to several models."""

from __future__ import annotations

from cuvee.errors import MethodError
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel
from cuvee.numerics.arrays import as_mask, sum_of, to_dtype
from cuvee.numerics.block import Array


def enough_models(*, threshold: tuple[float, ...], k: int) -> None:
    """Raises a MethodError if no position could matter to `k` models."""
    if not 1 <= k <= len(threshold):
        raise MethodError(
            "k cannot be more than there are models, or nothing would be merged",
            expected=f"1 to {len(threshold)}",
            found=str(k),
            parameter="k",
        )


@merge_method(
    "consensus",
    base="required",
    models=(2, None),
    check=enough_models,
    reference="Wang et al. 2024, Localizing task information for improved model merging and compression, "
    "arXiv:2405.07813",
)
def consensus(
    deltas: Deltas,
    *,
    weight: PerModel[float] = (1.0,),
    threshold: PerModel[float] = (0.4,),
    k: int = 2,
    lambda_: float = 1.0,
) -> Array:
    """The sum of the task vectors, kept only where at least k models have a say in it.

    With u_i = w_i d_i and u = sum_i u_i, an element matters to model i if |u_i| >= threshold_i * |u - u_i| (its TALL
    mask); lambda * u stays where it matters to k models or more. Removes what serves no model and what serves one alone
    at the cost of the others. The paper has all w_i = 1.

    Use it for merges of many models (the paper merges 8 to 20), where changes that serve one alone hurt the others.

    Args:
        weight: Strength of this model's task vector.
        threshold: How large this model's change must be against the sum of the others' to matter to it; the paper
            chooses it from 0.2 to 0.6 by validation, higher ones keep less.
        k: Models that an element must matter to; 1 keeps what serves any, the number of models only what serves all.
        lambda_: Scales the merged task vector.
    """
    votes = [delta if share == 1.0 else delta * share for delta, share in zip(deltas, weight, strict=True)]
    total = sum_of(votes)
    pairs = zip(votes, threshold, strict=True)
    matters = sum_of(to_dtype(abs(vote) >= abs(total - vote) * share, "uint8") for vote, share in pairs)
    result = total * as_mask(matters >= k, total)
    return result if lambda_ == 1.0 else result * lambda_
