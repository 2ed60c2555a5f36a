"""The tensor as it is: layer stacking and copies."""

from __future__ import annotations

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import PerModel, Weights
from cuvee.numerics.block import Array


@merge_method("passthrough", base="none", models=(1, 1))
def passthrough(weights: Weights, *, scale: PerModel[float | None] = (None,)) -> Array:
    """One model's tensors unchanged, or times a factor.

    Slices of one or several models stacked into a deeper or shallower one ("frankenmerges"). Without `scale` bytes are
    copied and no arithmetic happens.

    Use it for deeper or shallower models made of layers of others, which then need training, and to copy or scale
    tensors.

    Args:
        scale: Multiply the tensor by this.

    """
    (tensor,), (factor,) = weights.arrays, scale
    return tensor if factor is None else tensor * factor
