"""The few array operations that NumPy and torch spell differently. Methods are written on these and on operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuvee.numerics.block import Array


def namespace(array: Array) -> Any:
    """The array API namespace of `array`: NumPy itself, or array-api-compat's view of torch."""
    if isinstance(array, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(array)


def to_float64_sum(array: Array) -> float:
    """The sum of all elements, accumulated in float64."""
    xp = namespace(array)
    return float(xp.sum(array, dtype=xp.float64))


def dot64(a: Array, b: Array) -> float:
    """The dot product of two arrays of one shape, in float64."""
    xp = namespace(a)
    if xp is np:
        wide = a.astype(np.float64).reshape(-1)
        return float(np.dot(wide, wide if b is a else b.astype(np.float64).reshape(-1)))
    return float(xp.sum(xp.astype(a, xp.float64) * xp.astype(b, xp.float64)))


def as_mask(condition: Array, like: Array) -> Array:
    """A boolean array as 0.0 and 1.0 of `like`'s dtype; multiplying by it beats masked assignment several times over."""
    return condition.astype(like.dtype) if isinstance(condition, np.ndarray) else condition.to(like.dtype)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The array in host memory."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
