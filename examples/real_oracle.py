"""The formulas of the merge methods once more, naively and in float64, and how far a merge on disk is from them.

Nothing of Cuvee is imported: arrays in, arrays out. Random masks (DARE) are not drawn here; they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Formula = Callable[[str, list[Array]], Array]
"""Tensor name and the models' tensors in float64 (the base first, where there is one) -> the merged tensor."""


def linear(weights: Sequence[float]) -> Formula:
    """Weighted mean: sum w_i W_i / sum w_i."""
    return lambda _, models: _weighted(models, weights) / sum(weights)


def slerp(t: float) -> Formula:
    """sin((1-t) a) / sin a W_0 + sin(t a) / sin a W_1; a straight line where |cos a| > 0.9995."""

    def formula(_: str, models: list[Array]) -> Array:
        first, second = models
        norms = np.sqrt((first**2).sum()), np.sqrt((second**2).sum())
        cosine = (first * second).sum() / ((norms[0] or 1.0) * (norms[1] or 1.0))
        if abs(cosine) > 0.9995:
            return _weighted(models, (1 - t, t))
        angle = np.arccos(cosine)
        return _weighted(models, (np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)))

    return formula


def task_arithmetic(weights: Sequence[float], scale: float = 1.0) -> Formula:
    """W_0 + scale * sum w_i (W_i - W_0)."""
    return lambda _, models: models[0] + scale * _weighted(_deltas(models), weights)


def ties(weights: Sequence[float], densities: Sequence[float]) -> Formula:
    """The largest int(p n) entries of each delta, elected by sign, over the weights that agree."""

    def formula(_: str, models: list[Array]) -> Array:
        kept = [_largest(d, max(1, int(p * d.size))) for d, p in zip(_deltas(models), densities, strict=True)]
        return models[0] + _elected(kept, weights, normalize=True)

    return formula


def dare(
    weights: Sequence[float], masks: Callable[[str], Sequence[Array]], *, election: bool, rescale: bool = True
) -> Formula:
    """W_0 + sum w_i r_i m_i d_i, all of it or what agrees in sign; r_i restores the l1 norm that the mask m_i took."""

    def formula(name: str, models: list[Array]) -> Array:
        kept = []
        for delta, mask in zip(_deltas(models), masks(name), strict=True):
            left = abs(delta * mask).sum()
            kept.append(delta * mask * (abs(delta).sum() / left if rescale and left > 0 else 1.0))
        if election:
            return models[0] + _elected(kept, weights, normalize=False)
        return models[0] + _weighted(kept, weights)

    return formula


def _weighted(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    return np.asarray(sum(w * array for w, array in zip(weights, arrays, strict=True)))


def _deltas(models: list[Array]) -> list[Array]:
    return [model - models[0] for model in models[1:]]


def _largest(delta: Array, count: int) -> Array:
    """`delta` with zeros in place of all but the `count` entries of largest magnitude; among equals the first stay."""
    size = abs(delta).reshape(-1)
    threshold = np.partition(size, delta.size - count)[delta.size - count]
    keep = size > threshold
    equal = np.flatnonzero(size == threshold)
    keep[equal[: count - int(keep.sum())]] = True
    return np.asarray(delta * keep.reshape(delta.shape))


def _elected(deltas: list[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """The sum of the weighted deltas that have the sign of their sum (zero: plus), over their weights if asked."""
    votes = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(np.asarray(sum(votes)) >= 0, 1.0, -1.0)
    agree = [vote * sign > 0 for vote in votes]
    total = np.asarray(sum(vote * a for vote, a in zip(votes, agree, strict=True)))
    if not normalize:
        return total
    shares = _weighted(agree, weights)
    return np.asarray(total / np.where(shares == 0, 1.0, shares))


@dataclass(frozen=True)
class Distance:
    """How far a merge lies from its formula.

    Attributes:
        elements: how many were compared.
        nearest: how many are the float64 value rounded once to the output dtype.
        own_ulp: largest error in units in the last place of the result. Large only where inputs cancel.
        input_ulp: the same in units of the largest number that entered at that element.

    """

    elements: int
    nearest: int
    own_ulp: float
    input_ulp: float


def distance(merged: Path, inputs: Sequence[Path], formula: Formula) -> Distance:
    """How far the checkpoint at `merged` lies from what the formula makes of `inputs`, over all its tensors."""
    import torch
    from safetensors.torch import load_file

    elements, nearest, own, relative = 0, 0, 0.0, 0.0
    files = [load_file(path / "model.safetensors") for path in (merged, *inputs)]
    for name in files[0]:
        result, *tensors = [file[name] for file in files]
        models = [tensor.double().numpy() for tensor in tensors]
        exact = formula(name, models)
        got = result.double().numpy()
        rounded = torch.from_numpy(exact).to(result.dtype).double().numpy()
        digits = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[result.dtype]
        error = abs(got - exact)
        elements += exact.size
        nearest += int((got == rounded).sum())
        own = max(own, float((error / _ulp(exact, digits)).max()))
        largest = np.maximum.reduce([abs(exact), *map(abs, models)])
        relative = max(relative, float((error / _ulp(largest, digits)).max()))
    return Distance(elements, nearest, own, relative)


def _ulp(values: Array, digits: int) -> Array:
    """The spacing of numbers of `digits` binary digits at each value; that of float32's normal numbers near zero."""
    exponent = np.frexp(values)[1]
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, -125) - digits))
