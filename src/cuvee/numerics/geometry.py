"""Angles and norms from Gram matrices: K x K numbers in, K coefficients out, whatever the formula iterates.

Every function takes dot products of the inputs (float64, `[K, K]`) and gives the coefficients of a linear combination
of the inputs as they are, so that a method costs one scan and one combination.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuvee.errors import MethodError

Gram = np.ndarray[Any, Any]
_PARALLEL = 0.9995
_OPPOSED = 1e-6  # a sum of unit vectors that is shorter is what rounding left of vectors that cancel each other out
_UNSURE = 1e-2  # so short a sum is not known well from dot products in float32


def slerp_coefficients(gram: Gram, t: float, parallel: float = _PARALLEL) -> tuple[float, float]:
    """(s0, s1) such that s0 * v0 + s1 * v1 lies at fraction `t` of the arc from v0 to v1 (Shoemake 1985).

    Args:
        gram: `[2, 2]` dot products of v0 and v1. Directions come from it; the original magnitudes are kept, because the
            coefficients apply to the vectors as they are. A zero vector is not normalised.
        t: 0 gives v0, 1 gives v1.
        parallel: where |cos| exceeds this, the arc is straight or undefined, and the interpolation linear.
    """
    first, second = (math.sqrt(gram[i, i]) or 1.0 for i in range(2))
    cosine = float(gram[0, 1]) / (first * second)
    if not math.isfinite(cosine) or abs(cosine) > parallel:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def sphere_mean(gram: Gram, shares: Sequence[float], strengths: Sequence[float], eps: float) -> tuple[float, ...]:
    """Coefficients of the weighted mean direction on the sphere, as long as the weighted sum of the norms.

    The tangents at the normalised mean of the unit vectors, averaged with the same weights, vanish identically, so the
    exponential map moves nothing: the mean direction is the result.

    Args:
        gram: `[K, K]`.
        shares: weights of the directions.
        strengths: weights of the norms, and of two vectors that are opposed.
        eps: below this a norm or the mean counts as zero.

    Raises:
        MethodError: if more than two directions cancel each other out; two opposed ones are combined linearly.
    """
    norms = np.sqrt(np.diag(gram))
    if norms.max() < eps:
        return (0.0,) * len(norms)
    safe = np.maximum(norms, eps)
    direction = np.asarray(shares) / safe
    length = _length(gram, direction)
    if length < max(eps, _OPPOSED * float(np.abs(shares).sum())):
        if len(norms) == 2:
            return tuple(map(float, strengths))
        raise MethodError(
            "the models' directions cancel each other out, so they have no mean on the sphere",
            fix="use other weights, or the method linear",
        )
    return tuple(float(c) for c in direction / length * float(np.dot(strengths, norms)))


def karcher_coefficients(gram: Gram, max_iter: int, tol: float) -> tuple[float, ...]:
    """Coefficients of the Riemannian (Karcher) mean of the directions, with the mean of the norms (Karcher 1977).

    Starts at the normalised mean of the unit vectors (at the first one if they cancel each other out) and follows the
    mean tangent until its norm is below `tol`. Zero tensors have no direction; their norm counts in the mean. Nor has
    the way to the opposite point: it pulls nowhere.
    """
    norms = np.sqrt(np.diag(gram))
    used = np.flatnonzero(norms > 0)
    if used.size == 0:
        return (0.0,) * len(norms)
    units = gram[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    mean = np.full(used.size, 1.0 / used.size)
    if _length(units, mean) < _OPPOSED:
        mean = np.eye(1, used.size)[0]
    mean /= _length(units, mean)
    for _ in range(max_iter):
        cosines = np.clip(units @ mean, -1.0, 1.0)
        angles = np.arccos(cosines)
        sines = np.sin(angles)
        scales = np.where(sines > 1e-12, angles / np.where(sines > 1e-12, sines, 1.0), 1.0)
        scales[cosines < _OPPOSED - 1.0] = 0.0
        tangent = scales / used.size - float(np.mean(scales * cosines)) * mean
        step = _length(units, tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= _length(units, mean) or 1.0
    coefficients = np.zeros(len(norms))
    coefficients[used] = mean * float(np.mean(norms)) / norms[used]
    return tuple(map(float, coefficients))


def stock_ratio(gram: Gram) -> float:
    """The interpolation ratio t of model stock (Jang et al. 2024, eq. 5) from the Gram matrix of N deltas.

    t = N c / (1 + (N - 1) c) with c the mean pairwise cosine; 0 (the base) where the denominator vanishes.
    """
    count = len(gram)
    norms = np.sqrt(np.diag(gram))
    outer = np.outer(norms, norms)
    cosines = np.divide(gram, outer, out=np.zeros_like(gram), where=outer > 0)
    mean = float(cosines[np.triu_indices(count, 1)].mean()) if count > 1 else 1.0
    denominator = 1.0 + (count - 1) * mean
    return count * mean / denominator if abs(denominator) > 1e-12 else 0.0


def cancels(gram: Gram, shares: Sequence[float]) -> bool:
    """Whether the directions, each times its share, all but cancel out: by how much is not known well from float32.

    Vectors of no length have no direction.
    """
    norms = np.sqrt(np.diag(gram))
    direction = np.divide(shares, norms, out=np.zeros_like(norms), where=norms > 0)
    return _length(gram, direction) < _UNSURE * float(np.abs(shares).sum())


def _length(units: Gram, coefficients: np.ndarray[Any, Any]) -> float:
    return math.sqrt(max(float(coefficients @ units @ coefficients), 0.0))
