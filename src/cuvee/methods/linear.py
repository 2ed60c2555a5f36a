"""The weighted mean: model soups."""

from __future__ import annotations

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import PerModel, Weights
from cuvee.numerics.block import Array
from cuvee.numerics.combine import divisor, shares, weighted_sum


@merge_method(
    "linear",
    base="none",
    models=(1, None),
    coefficients=shares,
    reference="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
)
def linear(weights: Weights, *, weight: PerModel[float], normalize: bool = True) -> Array:
    """Weighted mean of the models' tensors.

    sum_i w_i W_i, divided by sum_i w_i if `normalize`.

    Use it first, for models fine-tuned from one base with alike data, or for checkpoints of one run; and as the
    yardstick that any other method has to beat.

    Args:
        weight: Share of this model.
        normalize: Divide by the sum of the weights, so that they need not add up to one.

    """
    return weighted_sum(weights, weight, divide_by=divisor(weight) if normalize else 1.0)
