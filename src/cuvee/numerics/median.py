"""The geometric median from a Gram matrix: the iteration runs on K coefficients, never on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Vector = np.ndarray[Any, Any]


def median_coefficients(gram: Vector, weight: Sequence[float], max_iter: int, tol: float) -> tuple[float, ...]:
    """Coefficients a, of sum one, such that sum_i a_i v_i has the least sum_j w_j ||. - v_j||.

    A vector v_k is the median if the pull of the others, || sum_j w_j (v_j - v_k) / ||v_j - v_k|| ||, is less than the
    weight that lies on it (Vardi and Zhang 2000, eq. 2.4 ff.). Otherwise Weiszfeld's steps from the weighted mean lead
    there: a_j is set in proportion to w_j over v_j's distance. Where the median is not unique (an even number of
    vectors on a line) the steps end at one that treats equal models alike.

    Args:
        gram: `[K, K]` dot products of the vectors, whose origin may be anywhere.
        weight: w_j, none negative, not all zero.
        max_iter: most steps.
        tol: steps end when no coefficient moves further.
    """
    weights = np.asarray(weight, np.float64)
    mean = weights / weights.sum()
    apart = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram  # squared distances between the vectors
    scale = float(apart.max())
    if not np.isfinite(scale) or scale <= 0:
        return tuple(map(float, mean))
    distances = np.sqrt(np.clip(apart / scale, 0.0, None))
    gram = gram / scale
    for k in range(len(mean)):
        if _is_median(k, gram, distances, weights):
            return tuple(map(float, np.eye(len(mean))[k]))
    return tuple(map(float, _weiszfeld(gram, weights, mean, max_iter, tol)))


def _is_median(k: int, gram: Vector, distances: Vector, weights: Vector) -> bool:
    """Whether the vectors away from v_k pull less than the weight of those that lie on it."""
    away = distances[k] > 1e-12
    pull = np.where(away, weights / np.where(away, distances[k], 1.0), 0.0)
    pull[k] -= pull.sum()  # coefficients of sum_j w_j (v_j - v_k) / ||v_j - v_k||
    return math.sqrt(max(float(pull @ gram @ pull), 0.0)) < float(weights[~away].sum()) * (1 - 1e-9)


def _weiszfeld(gram: Vector, weights: Vector, start: Vector, max_iter: int, tol: float) -> Vector:
    found = start
    for _ in range(max_iter):
        inner = gram @ found
        squares = np.diag(gram) - 2 * inner + found @ inner
        # The test before has shown that no vector is the median, so the floor only keeps a start on one of them alive.
        pull = weights / np.sqrt(np.maximum(squares, 1e-24))
        last, found = found, pull / pull.sum()
        if float(np.abs(found - last).max()) < tol:
            break
    return found
