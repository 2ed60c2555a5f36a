"""DELLA: drop changes at random, small ones more often, then add up or elect."""

from __future__ import annotations

from cuvee.methods.consensus import Consensus, Elect, add_up, elect_signs
from cuvee.methods.registry import merge_method
from cuvee.methods.sparsify import Drop, check_della
from cuvee.methods.spec import Deltas, PerModel, Prepared, Share
from cuvee.methods.unbiased import DividedDrop, Rescale, ranked_drop
from cuvee.numerics.block import Array

_PAPER = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"


@merge_method(
    "della", base="required", models=(1, None), scope="rows", prepare=ranked_drop, check=check_della, reference=_PAPER
)
def della(
    deltas: Deltas,
    thin: Prepared[Drop | DividedDrop],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    epsilon: PerModel[float] = (0.15,),
    normalize: bool = True,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    elect: Elect = "weighted",
    consensus_method: Consensus = "sum",
    int8_mask: bool = False,
) -> Array:
    """Task vectors thinned at random by rank, added where they agree on a sign.

    Within each row of d_i the probability to survive rises linearly with the rank of the magnitude, from p_i - eps_i to
    p_i + eps_i; then the sign election of `ties`. A vector is one row.

    Use it as `dare_ties`, where the largest changes should rather survive.

    Args:
        weight: Strength of this model's task vector.
        density: Mean probability that an element of this model's task vector survives.
        epsilon: How far the probability moves from the mean; density +- epsilon must lie between 0 and 1, except that a
            density of 0 or 1 itself drops or keeps all.
        normalize: Divide each element by the sum of the weights that agree there.
        rescale: Scale each thinned task vector back to its l1 norm, as in mergekit; `expected` divides each
            survivor by the probability that it had, as in the paper.
        lambda_: Scales the merged task vector.
        elect: Whose sum decides the sign: that of the weighted task vectors, as in mergekit, or of the task vectors
            as they are, as in the paper (`unweighted`).
        consensus_method: Whether the larger sum or the larger number of models (`count`) decides the sign.
        int8_mask: Accepted for old recipes; without effect.
    """
    return elect_signs(
        thin(deltas), weight, normalize=normalize, scale=lambda_, elect=elect, consensus_method=consensus_method
    )


@merge_method(
    "della_linear",
    base="required",
    models=(1, None),
    scope="rows",
    prepare=ranked_drop,
    check=check_della,
    reference=_PAPER,
)
def della_linear(
    deltas: Deltas,
    thin: Prepared[Drop | DividedDrop],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    epsilon: PerModel[float] = (0.15,),
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Array:
    """Task arithmetic on task vectors thinned at random by rank.

    The masks of `della`; then W_0 + lambda * sum_i w_i d_i.

    Use it as `dare_linear`, where the largest changes should rather survive.

    Args:
        weight: Strength of this model's task vector.
        density: Mean probability that an element of this model's task vector survives.
        epsilon: How far the probability moves from the mean; density +- epsilon must lie between 0 and 1, except that a
            density of 0 or 1 itself drops or keeps all.
        normalize: Divide by the sum of the weights.
        rescale: Scale each thinned task vector back to its l1 norm, as in mergekit; `expected` divides each
            survivor by the probability that it had, as in the paper.
        lambda_: Scales the merged task vector.
        int8_mask: Accepted for old recipes; without effect.
    """
    return add_up(thin(deltas), weight, normalize=normalize, scale=lambda_)
