"""Scaled float8: one scale for each block of values. Pure arithmetic; files and checkpoints are not known here.

The number meant is value x scale (DeepSeek-V3 calls the factor `weight_scale_inv`, compressed-tensors `weight_scale`).
A float8 has at most 4 significant bits and a scale 24, so float64 holds every product exactly.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from cuvee.tensors.dtypes import numpy_dtype

Array = np.ndarray[Any, Any]


def rows_of_scales(start: int, stop: int, shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, int]:
    """The rows [first, last) of the scales, flattened to two dimensions, that elements [start, stop) need.

    Args:
        start: first element.
        stop: after the last.
        shape: of the values; two or more dimensions.
        block: how many values share a scale along each dimension; 1 along all but the last two.

    """
    columns = max(shape[-1], 1)
    return (
        int(_scale_row(np.asarray(start // columns), shape, block)),
        int(_scale_row(np.asarray((stop - 1) // columns), shape, block)) + 1,
    )


def scale_values(
    values: Array, scales: Array, start: int, shape: tuple[int, ...], block: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """`values` times their scales, rounded once to `dtype`.

    Args:
        values: a run of float32 from element `start` on; overwritten.
        scales: [rows, columns] float32, the rows that `rows_of_scales` names.
        start: where in the tensor the run begins.
        shape: of the tensor.
        block: see `rows_of_scales`.
        dtype: of the result.

    """
    columns = max(shape[-1], 1)
    stop = start + values.size
    rows = _scale_row(np.arange(start // columns, -(-stop // columns)), shape, block)
    grid = scales[rows - (rows[0] if rows.size else 0)]
    factors = np.repeat(grid, block[-1], axis=1)[:, :columns].reshape(-1)
    factors = factors[start % columns :][: values.size]
    if dtype == np.float64:
        return np.asarray(np.multiply(values, factors, dtype=np.float64))
    if dtype == np.float32:
        values *= factors
        return values
    return _round_once(np.multiply(values, factors, dtype=np.float64), dtype)


def widen(raw: Array, code: str) -> Array:
    """The float32 values of float8 numbers given as bytes."""
    fresh = np.empty(raw.size, np.float32)
    even = raw.size & ~1
    # Two at a time: a table of all pairs takes half as long as one of all single values.
    np.take(_pairs(code), raw[:even].view(np.uint16), out=fresh[:even].view(np.complex64), mode="clip")
    fresh[even:] = raw[even:].view(numpy_dtype(code))
    return fresh


def _scale_row(row: Array, shape: tuple[int, ...], block: tuple[int, ...]) -> Array:
    """The row of the flattened scales for a row of the flattened values."""
    height, tall = max(shape[-2], 1), block[-2]
    matrix, inside = np.divmod(row, height)
    return np.asarray(matrix * -(-height // tall) + inside // tall)


def _round_once(exact: Array, dtype: np.dtype[Any]) -> Array:
    """Float64 values rounded to a 16-bit float as if in one step.

    Casts from float64 go by way of float32, and two roundings may differ from one. Rounding to odd first (Boldo and
    Melquiond, 2008) keeps enough of the lost part: the result is that of a single rounding.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = exact.astype(np.float32)
        lost = exact - near
        bits = near.view(np.int32)
        inexact = (lost != 0) & np.isfinite(near) & ((bits & 1) == 0)
        outwards = (lost > 0) == (exact > 0)
        bits += np.where(inexact, np.where(outwards, 1, -1), 0).astype(np.int32)
        return near.astype(dtype)


@cache
def _pairs(code: str) -> Array:
    """The values of every pair of float8 bit patterns; the two parts of a complex number stand for two numbers."""
    singles = np.arange(256, dtype=np.uint8).view(numpy_dtype(code)).astype(np.float32)
    return np.asarray(singles[np.arange(1 << 16, dtype=np.uint16).view(np.uint8)].view(np.complex64))


def block_of(
    values: tuple[int, ...], scales: tuple[int, ...], stated: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """How many values share a scale along each dimension; None if the scales do not cover the values.

    Args:
        values: shape of the values.
        scales: shape of their scales.
        stated: the block's shape in the last dimensions, if a config states it.

    """
    if math.prod(scales) == 1:
        return values
    if len(scales) < len(values) and scales == values[: len(scales)]:
        scales = scales + (1,) * (len(values) - len(scales))  # one for each row or matrix, told without the last axes
    if len(scales) != len(values) or len(values) < 2 or values[:-2] != scales[:-2]:
        return None
    sizes = []
    for axis in (-2, -1):
        options = [stated[axis]] if stated and len(stated) == 2 else []
        options.append(128)
        if scales[axis] and values[axis] % scales[axis] == 0:
            options.append(values[axis] // scales[axis])
        if scales[axis] == 1:
            options.insert(0, values[axis])
        fitting = [size for size in options if size > 0 and -(-values[axis] // size) == scales[axis]]
        if not fitting:
            return None
        sizes.append(fitting[0])
    return (*(1 for _ in values[:-2]), *sizes)
