"""Model breadcrumbs: drop the smallest changes and the outliers."""

from __future__ import annotations

from cuvee.methods.consensus import Consensus, Elect, add_up, elect_signs
from cuvee.methods.registry import merge_method
from cuvee.methods.sparsify import Band, band
from cuvee.methods.spec import Deltas, PerModel, Prepared, Share
from cuvee.numerics.block import Array

_PAPER = "Davari and Belilovsky 2023, Model breadcrumbs, arXiv:2312.06795"


@merge_method("breadcrumbs", base="required", models=(1, None), prepare=band, reference=_PAPER)
def breadcrumbs(
    deltas: Deltas,
    thin: Prepared[Band],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    gamma: PerModel[Share] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Array:
    """Task arithmetic without each task vector's largest and smallest changes.

    Of each d_i the int(gamma_i n) entries of largest magnitude go, then the smallest until int(p_i n) remain (fewer
    large ones go if too few would remain); then W_0 + lambda * sum_i w_i d_i.

    Use it for merges of many models, whose outliers would add up; density around 0.9 and gamma around 0.01 are gentle.

    Args:
        weight: Strength of this model's task vector.
        density: Fraction of this model's changes to keep.
        gamma: Fraction of this model's largest changes to drop.
        normalize: Divide by the sum of the weights.
        rescale: Scale each thinned task vector back to its l1 norm.
        lambda_: Scales the merged task vector.
        int8_mask: Accepted for old recipes; without effect.
    """
    return add_up(thin(deltas), weight, normalize=normalize, scale=lambda_)


@merge_method("breadcrumbs_ties", base="required", models=(1, None), prepare=band, reference=_PAPER)
def breadcrumbs_ties(
    deltas: Deltas,
    thin: Prepared[Band],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    gamma: PerModel[Share] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    elect: Elect = "weighted",
    consensus_method: Consensus = "sum",
    int8_mask: bool = False,
) -> Array:
    """Task vectors without their largest and smallest changes, added where they agree on a sign.

    The masks of `breadcrumbs` with the sign election of `ties`.

    Use it as `breadcrumbs`, for models that conflict.

    Args:
        weight: Strength of this model's task vector.
        density: Fraction of this model's changes to keep.
        gamma: Fraction of this model's largest changes to drop.
        normalize: Divide each element by the sum of the weights that agree there.
        rescale: Scale each thinned task vector back to its l1 norm.
        lambda_: Scales the merged task vector.
        elect: Whose sum decides the sign: that of the weighted task vectors, as in mergekit, or of the task vectors
            as they are, as in the paper (`unweighted`).
        consensus_method: Whether the larger sum or the larger number of models (`count`) decides the sign.
        int8_mask: Accepted for old recipes; without effect.
    """
    return elect_signs(
        thin(deltas), weight, normalize=normalize, scale=lambda_, elect=elect, consensus_method=consensus_method
    )
