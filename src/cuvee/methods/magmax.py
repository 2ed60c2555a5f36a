"""MagMax: in every element the largest change of any model."""

from __future__ import annotations

from functools import reduce

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas
from cuvee.numerics.arrays import namespace, with_sign_of
from cuvee.numerics.block import Array


@merge_method(
    "magmax",
    base="required",
    models=(1, None),
    reference="Marczak et al. 2024, MagMax: leveraging model merging for seamless continual learning, arXiv:2407.06322",
)
def magmax(deltas: Deltas, *, lambda_: float = 1.0) -> Array:
    """The base plus, element by element, the change of largest magnitude among the models.

    W_0 + lambda * d_k with k = argmax_i |d_i|. Where changes of opposite sign are equally large, the positive one is
    taken, so that the order of the models does not matter.

    Use it for models fine-tuned one after the other on a sequence of tasks.

    Args:
        lambda_: Scales the merged task vector; the paper uses 0.5 to 1.
    """
    xp = namespace(deltas[0])
    high, low = reduce(xp.maximum, deltas), reduce(xp.minimum, deltas)
    result = with_sign_of(xp.maximum(high, -low), high + low)
    return result if lambda_ == 1.0 else result * lambda_
