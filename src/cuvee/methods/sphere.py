"""Means on the sphere of several models: multislerp and karcher."""

from __future__ import annotations

import math

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel, Prepared, Weights
from cuvee.numerics.block import Array
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.geometry import Gram, cancels, karcher_coefficients, sphere_mean
from cuvee.numerics.scan import Scan

Coefficients = tuple[float, ...]


def mean_direction(scan: Scan, *, weight: tuple[float, ...], normalize_weights: bool, eps: float) -> Coefficients:
    """The coefficients of the combination, from the angles between the flattened tensors."""
    total = math.fsum(weight) if normalize_weights else 1.0
    return sphere_mean(_gram(scan, weight), weight, [share / (total or 1.0) for share in weight], eps)


def riemannian_mean(scan: Scan, *, max_iter: int, tol: float) -> Coefficients:
    """The coefficients of the combination, iterated on the Gram matrix."""
    return karcher_coefficients(_gram(scan, (1.0,) * scan.models), max_iter, tol)


def _gram(scan: Scan, weight: tuple[float, ...]) -> Gram:
    """All dot products, in float64 throughout where the directions all but cancel each other out."""
    gram = scan.gram()
    return scan.gram(wide=True) if cancels(gram, weight) else gram


@merge_method("multislerp", base="optional", models=(2, None), prepare=mean_direction)
def multislerp(
    deltas: Deltas,
    coefficients: Prepared[Coefficients],
    *,
    weight: PerModel[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Array:
    """Spherical interpolation of any number of models around their weighted mean direction.

    The unit vectors' weighted mean, brought back to the sphere, times the weighted mean of the norms; on task vectors
    if there is a base. Two opposed tensors are combined linearly; more that cancel each other out are refused.

    Use it as slerp for three and more models.

    Args:
        weight: Share of this model.
        normalize_weights: Divide the weights by their sum, so that the norm is the mean of the models' and not a sum.
        eps: Norms below this count as zero.
    """
    return weighted_sum(deltas, coefficients)


@merge_method(
    "karcher",
    base="none",
    models=(1, None),
    prepare=riemannian_mean,
    reference="Karcher 1977, Riemannian center of mass and mollifier smoothing",
)
def karcher(weights: Weights, coefficients: Prepared[Coefficients], *, max_iter: int = 10, tol: float = 1e-5) -> Array:
    """The Riemannian mean of the models' directions, with the mean of their norms.

    The point of the sphere whose squared geodesic distances to all inputs add up to least; every model counts equally.
    Where directions cancel each other out no point is better than others, and the first model's is taken.

    Use it for several models that stand on an equal footing, without weights to tune.

    Args:
        max_iter: Most steps towards the mean.
        tol: Steps end when the mean tangent is shorter than this.
    """
    return weighted_sum(weights, coefficients)
