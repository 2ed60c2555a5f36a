"""Spherical interpolation between two models."""

from __future__ import annotations

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Prepared, Weights
from cuvee.numerics.block import Array
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.geometry import slerp_coefficients
from cuvee.numerics.scan import Scan


def arc(scan: Scan, *, t: float) -> tuple[float, float]:
    """The two coefficients of the combination, from the angle between the flattened tensors."""
    return slerp_coefficients(scan.gram(), t)


@merge_method(
    "slerp",
    base="required",
    models=(1, 1),
    prepare=arc,
    reference="Shoemake 1985, Animating rotation with quaternion curves",
)
def slerp(weights: Weights, coefficients: Prepared[tuple[float, float]], *, t: float) -> Array:
    """Spherical interpolation of two models along the arc between their tensors.

    s_0 W_0 + s_1 W_1 with s_0 = sin((1-t) a) / sin a and s_1 = sin(t a) / sin a, where a is the angle between the
    flattened tensors; original magnitudes enter. Nearly parallel tensors are interpolated linearly. Keeps the norm
    where a linear mean would shrink it.

    Use it for two models of one base where a linear mean loses too much norm. Between fine-tunes of one base the angle
    is small and the two hardly differ.

    Args:
        t: 0 is the base model, 1 the other one; often a gradient over the layers.

    """
    return weighted_sum(weights, coefficients)
