"""Oracles of the geometric, row-wise and selecting methods: naive, float64, whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuvee.numerics.random import derive_key, draw_below, hashed, uniform_bytes
from methods.oracles import _MARGIN, _VANISHING, Case, Expected, Oracle, _add_up, _elect, _rescaled, _sum
from support.checkpoints import Array


def _angle(a: Array, b: Array) -> float:
    cosine = math.fsum(a.ravel() * b.ravel()) / (_norm(a) or 1.0) / (_norm(b) or 1.0)
    return math.acos(min(1.0, max(-1.0, cosine)))


def _norm(a: Array) -> float:
    return math.sqrt(math.fsum(a.ravel() ** 2))


def _arc(a: Array, b: Array, t: float) -> tuple[Array, Array]:
    angle = _angle(a, b)
    if math.sin(angle) < 1e-8:
        return (1 - t) * a, t * b
    return math.sin((1 - t) * angle) / math.sin(angle) * a, math.sin(t * angle) / math.sin(angle) * b


def _vectors(case: Case) -> tuple[list[Array], Array]:
    """What is interpolated, and what is added back."""
    if case.base is None:
        return list(case.arrays), np.zeros_like(case.arrays[0])
    return case.deltas, case.base


def nuslerp(case: Case, *, weight: Sequence[float], nuslerp_flatten: bool, nuslerp_row_wise: bool) -> Expected:
    (a, b), base = _vectors(case)
    total = weight[0] + weight[1]
    t = weight[1] / total if abs(total) > _VANISHING else 0.5
    if nuslerp_flatten or a.ndim < 2:
        return _sum([base, *_arc(a, b, t)])
    axis = 0 if nuslerp_row_wise else -1
    rows_a, rows_b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    first, second = np.empty_like(rows_a), np.empty_like(rows_b)
    for index in np.ndindex(rows_a.shape[:-1]):
        first[index], second[index] = _arc(rows_a[index], rows_b[index], t)
    return _sum([base, np.moveaxis(first, -1, axis), np.moveaxis(second, -1, axis)])


def multislerp(case: Case, *, weight: Sequence[float], normalize_weights: bool, eps: float) -> Expected:
    vectors, base = _vectors(case)
    norms = [max(_norm(v), eps) for v in vectors]
    mean = sum(w * v / n for w, v, n in zip(weight, vectors, norms, strict=True))
    length = _norm(np.asarray(mean))
    if max(map(_norm, vectors)) < eps:
        return _sum([base, *vectors])
    divisor = sum(weight) if normalize_weights else 1.0
    size = sum(w * _norm(v) for w, v in zip(weight, vectors, strict=True)) / (divisor or 1.0)
    if length < eps:
        return _sum([base, *(w / (divisor or 1.0) * v for w, v in zip(weight, vectors, strict=True))])
    return _sum([base, *(size / length * w * v / n for w, v, n in zip(weight, vectors, norms, strict=True))])


def karcher(case: Case, *, max_iter: int, tol: float) -> Expected:
    norms = [_norm(v) for v in case.arrays]
    units = [v / n for v, n in zip(case.arrays, norms, strict=True) if n > 0]
    if not units:
        return _sum(list(case.arrays))
    point = np.asarray(sum(units)) / (_norm(np.asarray(sum(units))) or 1.0)
    for _ in range(max_iter):
        tangent = np.zeros_like(point)
        for unit in units:
            angle = _angle(unit, point)
            scale = angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0
            tangent += scale * (unit - math.cos(angle) * point) / len(units)
        step = _norm(tangent)
        if step < tol:
            break
        point = math.cos(step) * point + math.sin(step) / step * tangent
        point /= _norm(point)
    size = sum(norms) / len(norms)
    return Expected(size * point, sum(abs(v) for v in case.arrays) + abs(size * point), np.zeros(point.shape, bool))


def _stock(deltas: Sequence[Array]) -> float:
    count = len(deltas)
    pairs = [(a, b) for i, a in enumerate(deltas) for b in deltas[:i]]
    cosines = [
        math.fsum(a.ravel() * b.ravel()) / _norm(a) / _norm(b) if _norm(a) and _norm(b) else 0.0 for a, b in pairs
    ]
    c = sum(cosines) / len(pairs)
    divisor = 1 + (count - 1) * c
    return count * c / divisor if abs(divisor) > 1e-12 else 0.0


def model_stock(case: Case, *, filter_wise: bool) -> Expected:
    assert case.base is not None
    deltas, count = case.deltas, len(case.arrays)
    if not filter_wise:
        t: Any = _stock(deltas)
    else:
        rows = [np.reshape(d, (-1, d.shape[-1] if d.ndim else 1)) for d in deltas]
        ratios = np.array([_stock([d[row] for d in rows]) for row in range(rows[0].shape[0])])
        t = np.reshape(np.repeat(ratios, rows[0].shape[1]), deltas[0].shape)
    return _sum([case.base, *(t * d / count for d in deltas)])


def nearswap(case: Case, *, t: float) -> Expected:
    assert case.base is not None
    (delta,) = case.deltas
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(delta == 0, 1.0, np.clip(t / np.abs(delta), 0, 1))
    return _sum([case.base, share * delta])


def _active(case: Case, epsilon: float) -> tuple[Array, Array, Array]:
    """Deltas, which entries are active, and which the float32 comparison may see otherwise."""
    deltas = np.stack(case.deltas)
    return deltas, np.abs(deltas) > epsilon, (np.abs(np.abs(deltas) - epsilon) < 1e-6 * epsilon).any(0)


def ram(case: Case, *, epsilon: float) -> Expected:
    assert case.base is not None
    deltas, active, unsure = _active(case, epsilon)
    merged = (deltas * active).sum(0) / np.maximum(active.sum(0), 1)
    return Expected(case.base + merged, np.abs(case.base) + np.abs(deltas).sum(0), unsure)


def ramplus_tl(case: Case, *, r: float, alpha: float, epsilon: float) -> Expected:
    assert case.base is not None
    deltas, active, unsure = _active(case, epsilon)
    count = active.sum(0)
    merged = (deltas * active).sum(0) / np.maximum(count, 1)
    for delta, mine in zip(deltas, active, strict=True):
        alone, shared = mine & (count == 1), mine & (count > 1)
        ratio = shared.sum() / alone.sum() if alone.sum() else 0.0
        merged = np.where(alone, delta * (1 + r * min(max(ratio, 0.0), alpha)), merged)
    return Expected(case.base + merged, np.abs(case.base) + 2 * np.abs(deltas).sum(0), unsure)


def sce(case: Case, *, select_topk: float, uniform_below: float, int8_mask: bool) -> Expected:
    assert case.base is not None
    deltas = np.stack(case.deltas)
    variance = deltas.var(0)
    near = np.zeros(variance.shape, bool)
    if select_topk < 1.0:
        count = int(select_topk * np.count_nonzero(variance))
        order = np.argsort(-variance.ravel(), kind="stable")
        mask = np.zeros(variance.size, bool)
        mask[order[:count]] = True
        bound = variance.ravel()[order[count - 1]] if count else np.inf
        near = np.abs(variance - bound) <= 1e-5 * bound if count else near
        near &= near.sum() > 1  # the one at the bound is itself there
        deltas = deltas * mask.reshape(variance.shape)
    energies = [math.fsum(d.ravel() ** 2) / d.size for d in deltas]
    total = sum(energies)
    weights = [e / total for e in energies] if total > 0 and total >= uniform_below else [1 / len(deltas)] * len(deltas)
    votes, size = deltas.sum(0), np.abs(deltas).sum(0)
    agree = np.sign(deltas) == np.where(votes >= 0, 1.0, -1.0)
    share = np.reshape(weights, (-1, *[1] * votes.ndim)) * agree
    divisor = np.where(share.sum(0) == 0, 1.0, share.sum(0))
    merged = (deltas * share).sum(0) / divisor
    unsure = near | ((size > 0) & (np.abs(votes) <= _MARGIN * size))
    return Expected(case.base + merged, np.abs(case.base) + size, unsure)


def arcee_fusion(case: Case) -> Expected:
    assert case.base is not None
    other, base = (np.reshape(x, (-1, x.shape[-1] if x.ndim else 1)) for x in (case.arrays[0], case.base))

    def softmax(rows: Array) -> Array:
        e = np.exp(rows - rows.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))

    p, q = softmax(other), softmax(base)
    divergence = np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0.0)
    importance = np.abs(other - base) * divergence
    ordered, n = np.sort(importance.ravel()), importance.size
    q1, q2, q3 = (ordered[math.floor(share * (n - 1))] for share in (0.25, 0.5, 0.75))
    bound = q2 + 1.5 * (q3 - q1)
    merged = base + (other - base) * (importance >= bound)
    unsure = (np.abs(importance - bound) <= 1e-5 * bound) & (bound > 0)
    return Expected(*(np.reshape(x, case.base.shape) for x in (merged, np.abs(base) + np.abs(other), unsure)))


def _banded(delta: Array, density: float, gamma: float) -> Array:
    kept = int(density * delta.size)
    top = min(int(gamma * delta.size), delta.size - kept)
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[top : top + kept]] = True
    return np.asarray(delta * mask.reshape(delta.shape))


def breadcrumbs(
    case: Case, *, weight: Sequence[float], density: Sequence[float], gamma: Sequence[float], normalize: bool,
    rescale: bool, lambda_: float, int8_mask: bool,
) -> Expected:  # fmt: skip
    thinned = [_banded(*each) for each in zip(case.deltas, density, gamma, strict=True)]
    return _add_up(case, _rescaled(case, thinned, rescale)[0], weight, normalize, lambda_)


def breadcrumbs_ties(
    case: Case, *, weight: Sequence[float], density: Sequence[float], gamma: Sequence[float], normalize: bool,
    rescale: bool, lambda_: float, int8_mask: bool, elect: str, consensus_method: str,
) -> Expected:  # fmt: skip
    thinned = [_banded(*each) for each in zip(case.deltas, density, gamma, strict=True)]
    thinned, scaled = _rescaled(case, thinned, rescale)
    exact = len(set(weight)) == 1 and not scaled
    return _elect(case, thinned, weight, normalize, lambda_, exact=exact, elect=elect, count=consensus_method)


def _ranked(case: Case, density: Sequence[float], epsilon: Sequence[float]) -> list[Array]:
    """The deltas thinned by rank, element by element: a draw far from the bounds decides, others ask a partner."""
    thinned = []
    for position, (delta, share, spread) in enumerate(zip(case.deltas, density, epsilon, strict=True)):
        rows = np.reshape(np.abs(delta), (-1, delta.shape[-1] if delta.ndim else 1))
        columns = rows.shape[1]
        key = derive_key(case.key, position)
        if columns == 1:
            keep = draw_below(share, key, 0, rows)
            thinned.append(np.asarray(delta * keep.reshape(delta.shape)))
            continue
        low, high = 256 * (share - spread), 256 * (share + spread)
        first, last = math.floor(low), math.ceil(high)
        draws = uniform_bytes(key, 0, rows)
        finer = hashed(np.arange(rows.size), derive_key(key, "rank"))
        keep = np.zeros(rows.size, bool)
        for index, draw in enumerate(draws.tolist()):
            row, column = divmod(index, columns)
            exact = first + int(finer[index]) * (last - first) / 2**32
            if draw < first or (draw < last and exact < low):
                keep[index] = True
            elif draw < last and exact < high:
                others = [*rows[row, :column], *rows[row, column + 1 :]]
                partner = others[int((exact - low) / (high - low) * len(others))]
                tie = rows[row, column] == partner and finer[index] % 2 == 1
                keep[index] = tie or rows[row, column] > partner
        thinned.append(np.asarray(delta * keep.reshape(delta.shape)))
    return thinned


def _unbiased(
    case: Case, thinned: Sequence[Array], rescale: bool | str, density: Sequence[float], epsilon: Sequence[float]
) -> tuple[list[Array], bool]:
    """As `_rescaled`, but by `expected` each element divided by the probability it had: ranks counted one by one."""
    if rescale != "expected":
        return _rescaled(case, thinned, rescale)
    scaled = []
    for delta, thin, share, spread in zip(case.deltas, thinned, density, epsilon, strict=True):
        rows = np.reshape(np.abs(delta), (-1, delta.shape[-1] if delta.ndim else 1))
        columns = rows.shape[1]
        smaller = np.array([(row < row[:, None]).sum(1) for row in rows])
        rank = smaller + (np.array([(row == row[:, None]).sum(1) for row in rows]) - 1) / 2
        chance = share - spread + 2 * spread * rank / (columns - 1) if columns > 1 else np.full(rank.shape, share)
        scaled.append(np.asarray(thin / chance.reshape(thin.shape)))
    return scaled, True


def della_linear(
    case: Case, *, weight: Sequence[float], density: Sequence[float], epsilon: Sequence[float], normalize: bool,
    rescale: bool, lambda_: float, int8_mask: bool,
) -> Expected:  # fmt: skip
    thinned, _ = _unbiased(case, _ranked(case, density, epsilon), rescale, density, epsilon)
    return _add_up(case, thinned, weight, normalize, lambda_)


def della(
    case: Case, *, weight: Sequence[float], density: Sequence[float], epsilon: Sequence[float], normalize: bool,
    rescale: bool, lambda_: float, int8_mask: bool, elect: str, consensus_method: str,
) -> Expected:  # fmt: skip
    thinned, scaled = _unbiased(case, _ranked(case, density, epsilon), rescale, density, epsilon)
    exact = len(set(weight)) == 1 and not scaled
    return _elect(case, thinned, weight, normalize, lambda_, exact=exact, elect=elect, count=consensus_method)


MORE_ORACLES: dict[str, Oracle] = {
    function.__name__: function
    for function in (
        nuslerp, multislerp, karcher, model_stock, nearswap, ram, ramplus_tl, sce, arcee_fusion, breadcrumbs,
        breadcrumbs_ties, della, della_linear,
    )
}  # fmt: skip

MORE_CASES: dict[str, list[dict[str, Any]]] = {
    "nuslerp": [
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        {"weight": (1.0, -1.0)},
        {"weight": (0.0, 2.0)},
    ],
    "multislerp": [{"normalize_weights": False}, {"weight": (1.0, 1.0, 1.0)}],
    "karcher": [{"max_iter": 1}, {"max_iter": 50, "tol": 1e-12}],
    "model_stock": [{"filter_wise": True}],
    "nearswap": [{"t": 0.01}, {"t": 100.0}, {"t": 0.0}],
    "ram": [{"epsilon": 0.2}],
    "ramplus_tl": [{"epsilon": 0.2}, {"epsilon": 0.3, "r": 0.5, "alpha": 2.0}],
    "sce": [{"select_topk": 1.0}, {"select_topk": 0.1}, {"uniform_below": 0.0}, {"uniform_below": 1e9}],
    "breadcrumbs": [{"gamma": (0.2, 0.01, 0.5), "rescale": True}, {"density": (0.95, 1.0, 0.0), "gamma": (0.2,) * 3}],
    "breadcrumbs_ties": [{"normalize": True}, {"elect": "unweighted"}, {"consensus_method": "count"}],
    "della": [
        {"rescale": False, "normalize": False},
        {"epsilon": (0.05, 0.3, 0.2)},
        {"elect": "unweighted"},
        {"rescale": "expected"},
    ],
    "della_linear": [{"rescale": False}, {"normalize": True}, {"rescale": "expected"}],
}
