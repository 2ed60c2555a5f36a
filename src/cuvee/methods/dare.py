"""DARE: drop changes at random, rescale the rest, then add up or elect."""

from __future__ import annotations

from cuvee.methods.consensus import Consensus, Elect, add_up, elect_signs
from cuvee.methods.registry import merge_method
from cuvee.methods.sparsify import Drop
from cuvee.methods.spec import Deltas, PerModel, Prepared, Share
from cuvee.methods.unbiased import Rescale, drop
from cuvee.numerics.block import Array

_PAPER = "Yu et al. 2023, Language models are super Mario, arXiv:2311.03099"


@merge_method("dare_linear", base="required", models=(1, None), prepare=drop, reference=_PAPER)
def dare_linear(
    deltas: Deltas,
    thin: Prepared[Drop],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Array:
    """Task arithmetic on randomly thinned task vectors.

    Each element of d_i survives with probability p_i; then W_0 + lambda * sum_i w_i d_i. The mask depends only on seed,
    tensor name, model position and element index.

    Use it for models with many tiny changes (supervised fine-tunes of large models), at densities from 0.1 to 0.5;
    models that moved far do not survive strong thinning.

    Args:
        weight: Strength of this model's task vector.
        density: Probability that an element of this model's task vector survives.
        normalize: Divide by the sum of the weights.
        rescale: Scale each thinned task vector back to its l1 norm, as in mergekit; `expected` divides each
            survivor by the probability that it had, as in the paper.
        lambda_: Scales the merged task vector.
        int8_mask: Accepted for old recipes; without effect.

    """
    return add_up(thin(deltas), weight, normalize=normalize, scale=lambda_)


@merge_method("dare_ties", base="required", models=(1, None), prepare=drop, reference=_PAPER)
def dare_ties(
    deltas: Deltas,
    thin: Prepared[Drop],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: float = 1.0,
    elect: Elect = "weighted",
    consensus_method: Consensus = "sum",
    int8_mask: bool = False,
) -> Array:
    """Randomly thinned task vectors, added where they agree on a sign.

    The masks of `dare_linear` with the sign election of `ties`.

    Use it as `dare_linear`, for three and more models that conflict.

    Args:
        weight: Strength of this model's task vector.
        density: Probability that an element of this model's task vector survives.
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
