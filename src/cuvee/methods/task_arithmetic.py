"""Sums of task vectors."""

from __future__ import annotations

from cuvee.methods.consensus import add_up
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel
from cuvee.numerics.block import Array
from cuvee.numerics.combine import scaled_shares


@merge_method(
    "task_arithmetic",
    base="required",
    models=(1, None),
    coefficients=scaled_shares,
    reference="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089",
)
def task_arithmetic(
    deltas: Deltas, *, weight: PerModel[float], normalize: bool = False, lambda_: float = 1.0, int8_mask: bool = False
) -> Array:
    """The base plus a weighted sum of what each model learned.

    W_0 + lambda * sum_i w_i d_i with d_i = W_i - W_0; divided by sum_i w_i if `normalize`.

    Use it whenever a base is known: it is the one whose gains held up on language models in the wild. Try weights of
    0.3 to 1 and lower `lambda` as models are added.

    Args:
        weight: Strength of this model's task vector; negative ones unlearn.
        normalize: Divide by the sum of the weights.
        lambda_: Scales the sum of task vectors.
        int8_mask: Accepted for old recipes; without effect.

    """
    return add_up(deltas.arrays, weight, normalize=normalize, scale=lambda_)
