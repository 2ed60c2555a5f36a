"""NearSwap: the other model where it is near, a bounded step towards it elsewhere."""

from __future__ import annotations

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas
from cuvee.numerics.arrays import namespace
from cuvee.numerics.block import Array


@merge_method("nearswap", base="required", models=(1, 1))
def nearswap(deltas: Deltas, *, t: float) -> Array:
    """The base moved towards the other model by at most t in every element.

    a W_1 + (1 - a) W_0 with a = clip(t / |W_0 - W_1|, 0, 1), which is W_0 + clip(d_1, -t, t).

    Use it to take over from another model only what is nearly there already; t is in the units of the weights, often
    0.0001 to 0.001.

    Args:
        t: Largest change of an element.
    """
    (delta,) = deltas
    bound = abs(t) if t > 0 else 0.0
    # The difference is 0, but for infinities: clipping must not hide that a weight is not finite.
    return namespace(delta).clip(delta, -bound, bound) + (delta - delta)
