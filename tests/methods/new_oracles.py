"""Oracles of the methods that mergekit does not have, and of the stages: naive, float64, whole tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from methods.more_oracles import _norm
from methods.oracles import Case, Expected, Oracle, _sum


def staged(expected: Expected, case: Case, chosen: Mapping[str, Any]) -> Expected:
    """What the stages make of a merged tensor."""
    factor = chosen.get("lines", 1.0)
    if chosen.get("match_norm"):
        assert case.base is not None
        merged = _norm(expected.value - case.base)
        shares = [abs(w) for w in chosen.get("weight", [1.0] * len(case.arrays))]
        goal = sum(share * _norm(delta) for share, delta in zip(shares, case.deltas, strict=True)) / sum(shares)
        factor *= goal / merged if merged else 1.0
    if factor == 1.0:
        return expected
    assert case.base is not None
    terms = np.abs(case.base) + abs(factor) * expected.terms
    return Expected(case.base + factor * (expected.value - case.base), terms, expected.unsure)


def magmax(case: Case, *, lambda_: float) -> Expected:
    assert case.base is not None
    deltas = sorted((delta.ravel() for delta in case.deltas), key=lambda delta: tuple(delta[:4]))
    best = np.zeros(case.base.size)
    for place in range(best.size):
        values = [float(delta[place]) for delta in deltas]
        largest = max(map(abs, values))
        best[place] = largest if largest in values else -largest
    return _sum([case.base, lambda_ * best.reshape(case.base.shape)])


def consensus(case: Case, *, weight: Sequence[float], threshold: Sequence[float], k: int, lambda_: float) -> Expected:
    assert case.base is not None
    votes = np.stack([w * delta for w, delta in zip(weight, case.deltas, strict=True)])
    total, count = votes.sum(0), np.zeros(votes.shape[1:], int)
    unsure = np.zeros(votes.shape[1:], bool)
    for vote, share in zip(votes, threshold, strict=True):
        others = share * np.abs(total - vote)
        count += np.abs(vote) >= others
        unsure |= (np.abs(np.abs(vote) - others) <= 1e-6 * np.abs(votes).sum(0)) & (np.abs(votes).sum(0) > 0)
    merged = lambda_ * np.where(count >= k, total, 0.0)
    return Expected(case.base + merged, np.abs(case.base) + abs(lambda_) * np.abs(votes).sum(0), unsure)


def _with_shares(case: Case, scores: Sequence[float], lambda_: float) -> Expected:
    assert case.base is not None
    total = math.fsum(scores)
    shares = [score / total if total else 1 / len(scores) for score in scores]
    return _sum([case.base, *(lambda_ * share * d for share, d in zip(shares, case.deltas, strict=True))])


def metagpt(case: Case, *, lambda_: float, norm_scope: str) -> Expected:
    return _with_shares(case, [_norm(delta) ** 2 for delta in case.deltas], lambda_)


def nan(case: Case, *, lambda_: float, norm_scope: str) -> Expected:
    return _with_shares(case, [1 / _norm(delta) if _norm(delta) else 0.0 for delta in case.deltas], lambda_)


def geometric_median(case: Case, *, weight: Sequence[float], max_iter: int, tol: float) -> Expected:
    """Weiszfeld's steps on the whole tensors, from the mean, until nothing moves; or the vector that they approach."""
    point = np.asarray(sum(w * array for w, array in zip(weight, case.arrays, strict=True)) / sum(weight))
    for _ in range(150):
        gaps = [float(np.linalg.norm((array - point).ravel())) for array in case.arrays]
        if min(gaps) < 1e-9 * max(1e-300, *gaps):
            point = case.arrays[int(np.argmin(gaps))]
            break
        pulls = [w / gap for w, gap in zip(weight, gaps, strict=True)]
        moved = np.asarray(sum(p * array for p, array in zip(pulls, case.arrays, strict=True)) / sum(pulls))
        step, point = float(np.linalg.norm((moved - point).ravel())), moved
        if step < 1e-16 * max(gaps):
            break
    first = case.arrays[0]
    return Expected(
        point, np.abs(first) + sum(np.abs(array - first) for array in case.arrays), np.zeros(point.shape, bool)
    )


NEW_ORACLES: dict[str, Oracle] = {
    function.__name__: function for function in (magmax, consensus, metagpt, nan, geometric_median)
}

NEW_CASES: dict[str, list[dict[str, Any]]] = {
    "magmax": [{"lambda": 1.0}],
    "consensus": [
        {"k": 1, "threshold": (0.2, 0.6, 0.9)},
        {"k": 3, "weight": (1.0, 0.5, -0.7), "lambda": 1.3},
    ],
    "metagpt": [],
    "nan": [],
    "geometric_median": [{"weight": (1.0, 2.0, 0.0)}, {"weight": (1.0, 2.5, 1.0)}, {"weight": (0.5, 0.6, 0.45)}],
}
