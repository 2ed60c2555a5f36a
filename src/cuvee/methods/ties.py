"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from cuvee.methods.consensus import Consensus, Elect, elect_signs
from cuvee.methods.registry import merge_method
from cuvee.methods.sparsify import Trim, trim
from cuvee.methods.spec import Deltas, Over, PerModel, Prepared, Share
from cuvee.numerics.block import Array


@merge_method(
    "ties",
    base="required",
    models=(1, None),
    prepare=trim,
    reference="Yadav et al. 2023, TIES-Merging: resolving interference when merging models, arXiv:2306.01708",
)
def ties(
    deltas: Deltas,
    thin: Prepared[Trim],
    *,
    weight: PerModel[float],
    density: PerModel[Share] = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    elect: Elect = "weighted",
    consensus_method: Consensus = "sum",
    trim_scope: Over = "tensor",
    int8_mask: bool = False,
) -> Array:
    """The largest changes of each model, added where they agree on a sign.

    Of each d_i the max(1, int(p_i n)) entries of largest magnitude stay, at p_i = 0 none (u_i = w_i d_i there, else 0);
    s = sign(sum_i u_i), zero counting as positive; the result is the sum of the u_i with sign s, divided by the sum of
    the w_i that agree if `normalize`.

    Use it for three and more models that pull in different directions. Start at density 0.5 and compare with
    `task_arithmetic`.

    Args:
        weight: Strength of this model's task vector.
        density: Fraction of this model's changes to keep; around 0.2 to 0.6 is usual.
        normalize: Divide each element by the sum of the weights that agree there.
        rescale: Scale each thinned task vector back to its l1 norm.
        lambda_: Scales the merged task vector.
        elect: Whose sum decides the sign: that of the weighted task vectors, as in mergekit, or of the task vectors
            as they are, as in the paper (`unweighted`).
        consensus_method: Whether the larger sum or the larger number of models (`count`) decides the sign.
        trim_scope: Whether the largest entries are those of each `tensor`, as in mergekit, or of the whole `model`, as
            in the paper; tensors of different densities are then ranked apart.
        int8_mask: Accepted for old recipes; without effect.

    """
    return elect_signs(
        thin(deltas), weight, normalize=normalize, scale=lambda_, elect=elect, consensus_method=consensus_method
    )
