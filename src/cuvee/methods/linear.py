"""The weighted mean: model soups."""

from __future__ import annotations

import math

from cuvee.errors import MethodError
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import PerModel, Weights
from cuvee.numerics.block import Array
from cuvee.numerics.combine import divisor, shares, vanishes, weighted_sum


def divisible(*, weight: tuple[float, ...], normalize: bool) -> None:
    """Raises a MethodError for weights that cannot be divided by their sum."""
    if normalize and vanishes(math.fsum(weight)):
        raise MethodError(
            "the weights add up to nothing, so they cannot be divided by their sum",
            found=f"weights {', '.join(map(str, weight))}",
            fix="use other weights, or `normalize: false` for the sum as it is",
            parameter="weight",
        )


@merge_method(
    "linear",
    base="none",
    models=(1, None),
    check=divisible,
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
