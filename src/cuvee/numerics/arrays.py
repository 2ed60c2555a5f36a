"""The few array operations that NumPy and torch spell differently. Methods are written on these and on operators."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from cuvee.numerics.block import Array

_RUN = 1 << 10


def namespace(array: Array) -> Any:
    """The array API namespace of `array`: NumPy itself, or array-api-compat's view of torch."""
    if isinstance(array, np.ndarray):
        return np
    import array_api_compat

    return array_api_compat.array_namespace(array)


def sum_64(array: Array, times: Array | None = None) -> float:
    """The sum of all elements, or of all products with those of `times`, accumulated in float64.

    On the CPU, runs of 1024 float32 elements are summed in float32 by BLAS, many partial sums at once: three times as
    fast, and off by 1e-8 or so.
    """
    xp = namespace(array)
    if xp is not np or array.dtype != np.float32:
        return float(xp.sum(array if times is None else array * times, dtype=xp.float64))
    flat = array.reshape(-1)
    whole = flat.size - flat.size % _RUN
    runs, rest = flat[:whole].reshape(-1, _RUN), flat[whole:].astype(np.float64)
    if times is None:
        return float((runs @ _ones()).sum(dtype=np.float64) + rest.sum())
    factors = times.reshape(-1)
    return float(np.vecdot(runs, factors[:whole].reshape(-1, _RUN)).sum(dtype=np.float64) + rest @ factors[whole:])


@cache
def _ones() -> np.ndarray[Any, Any]:
    return np.ones(_RUN, np.float32)


def dot64(a: Array, b: Array) -> float:
    """The dot product of two arrays of one shape, in float64."""
    xp = namespace(a)
    if xp is np:
        wide = a.astype(np.float64).reshape(-1)
        return float(np.dot(wide, wide if b is a else b.astype(np.float64).reshape(-1)))
    return float(xp.sum(xp.astype(a, xp.float64) * xp.astype(b, xp.float64)))


def to_dtype(array: Array, name: str) -> Array:
    """The array converted to the dtype called `name`."""
    return namespace(array).astype(array, getattr(namespace(array), name))


def as_mask(condition: Array, like: Array) -> Array:
    """A boolean (or small integer) array as numbers of `like`'s dtype: multiplying by it beats masked assignment."""
    return namespace(like).astype(condition, like.dtype)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The array in host memory."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def sum_of(arrays: Iterable[Array]) -> Array:
    """The sum of arrays of one shape; of a single one, that array itself."""
    parts = iter(arrays)
    total = next(parts)
    own = False  # each is let go before the next but one is made: fewer of them share the cache
    for array in parts:
        if own:
            total += array
        else:
            total, own = total + array, True
    return total


def with_sign_of(size: Array, sign: Array) -> Array:
    """Non-negative `size` with the sign of `sign`; the bits are moved, as NumPy's copysign is four times slower."""
    if not isinstance(size, np.ndarray):
        return namespace(size).copysign(size, sign)
    bits = np.uint32 if size.dtype.itemsize == 4 else np.uint64
    signed = sign.view(bits) & bits(1 << (8 * size.dtype.itemsize - 1))
    signed |= size.view(bits)
    return signed.view(size.dtype)


def device_of(array: Array) -> dict[str, Any]:
    """The argument that makes a new array where `array` lies; NumPy needs none."""
    return {} if isinstance(array, np.ndarray) else {"device": array.device}


def like(array: Array) -> dict[str, Any]:
    """The arguments that make a new array of `array`'s dtype, where it lies."""
    return {"dtype": array.dtype, **device_of(array)}
