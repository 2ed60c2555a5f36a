"""Every method once more, from its formula: naive, in float64, whole tensors, `argsort` for selections.

The formulas are those of the table of compatible methods; nothing is shared with the code under test but the random
numbers, whose own tests are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.numerics.random import derive_key, draw_below
from support.checkpoints import Array

_VANISHING = 1e-8
_MARGIN = 1e-5  # of a vote's size: float32 sums of a few terms are wrong by less than 1e-6 of it


@dataclass(frozen=True)
class Expected:
    """A merged tensor, and how far float32 arithmetic may be from it.

    Attributes:
        value: float64.
        terms: the sum of the absolute values of what was added up.
        unsure: where votes cancel so nearly that rounding decides their sign.

    """

    value: Array
    terms: Array
    unsure: Array


@dataclass(frozen=True)
class Case:
    """One tensor of every model in float64 (`base` apart), and the key of the tensor."""

    arrays: Sequence[Array]
    base: Array | None
    key: int

    @property
    def deltas(self) -> list[Array]:
        """What each model learned."""
        assert self.base is not None
        return [array - self.base for array in self.arrays]


Oracle = Callable[..., Expected]


def _sum(terms: Sequence[Array]) -> Expected:
    stacked = np.stack(terms)
    return Expected(stacked.sum(0), np.abs(stacked).sum(0), np.zeros(stacked.shape[1:], bool))


def linear(case: Case, *, weight: Sequence[float], normalize: bool) -> Expected:
    divisor = sum(weight) if normalize and abs(sum(weight)) > _VANISHING else 1.0
    return _sum([w / divisor * array for w, array in zip(weight, case.arrays, strict=True)])


def passthrough(case: Case, *, scale: Sequence[float | None]) -> Expected:
    (array,), (factor,) = case.arrays, scale
    return _sum([array if factor is None else array * factor])


def slerp(case: Case, *, t: float) -> Expected:
    assert case.base is not None
    v0, v1 = case.base.ravel(), case.arrays[0].ravel()
    n0, n1 = math.sqrt(math.fsum(v0 * v0)), math.sqrt(math.fsum(v1 * v1))
    cosine = math.fsum((v0 / (n0 or 1)) * (v1 / (n1 or 1)))
    if abs(cosine) > 0.9995:
        s0, s1 = 1 - t, t
    else:
        angle = math.acos(cosine)
        s0, s1 = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return _sum([s0 * case.base, s1 * case.arrays[0]])


def _add_up(case: Case, thinned: Sequence[Array], weight: Sequence[float], normalize: bool, lambda_: float) -> Expected:
    assert case.base is not None
    divisor = sum(weight) if normalize and abs(sum(weight)) > _VANISHING else 1.0
    return _sum([case.base, *(lambda_ * w / divisor * d for w, d in zip(weight, thinned, strict=True))])


def _elect(
    case: Case, thinned: Sequence[Array], weight: Sequence[float], normalize: bool, lambda_: float, *, exact: bool,
    elect: str = "weighted", count: str = "sum",
) -> Expected:  # fmt: skip
    """The base plus the elected sum; `exact` where equal votes cancel without any rounding."""
    assert case.base is not None
    votes = np.stack([w * d for w, d in zip(weight, thinned, strict=True)])
    ballots = votes if elect == "weighted" else np.stack(thinned)
    ballots = np.sign(ballots) if count == "count" else ballots
    total, size = ballots.sum(0), np.abs(ballots).sum(0)
    exact = exact or count == "count" or elect == "unweighted"
    sign = np.where(total >= 0, 1.0, -1.0)
    agree = np.sign(votes) == sign
    merged = (votes * agree).sum(0)
    unsure = np.zeros(total.shape, bool) if exact else (size > 0) & (np.abs(total) <= _MARGIN * size)
    size = np.abs(votes).sum(0)
    if normalize:
        divisor = (np.reshape(weight, (-1, *[1] * total.ndim)) * agree).sum(0)
        divisor = np.where(np.abs(divisor) < _VANISHING, 1.0, divisor)
        merged, size = merged / divisor, size / np.abs(divisor)
    return Expected(case.base + lambda_ * merged, np.abs(case.base) + abs(lambda_) * size, unsure)


def _l1_ratio(full: Array, left: Array) -> float:
    kept = math.fsum(np.abs(left).ravel())
    return math.fsum(np.abs(full).ravel()) / kept if kept > 0 else 1.0


def _largest(delta: Array, density: float) -> Array:
    """All but the delta's int(density n) largest entries zero, one kept at least but at 0, lowest index first."""
    count = max(1, int(density * delta.size)) if density > 0 else 0
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[:count]] = True
    return np.asarray(delta * mask.reshape(delta.shape))


def _dropped(case: Case, density: Sequence[float]) -> list[Array]:
    return [
        delta * draw_below(share, derive_key(case.key, position), 0, np.zeros(delta.size)).reshape(delta.shape)
        for position, (delta, share) in enumerate(zip(case.deltas, density, strict=True))
    ]


def _rescaled(
    case: Case, thinned: Sequence[Array], rescale: bool | str, density: Sequence[float] = ()
) -> tuple[list[Array], bool]:
    """The thinned deltas with their l1 norms restored (or divided by `density`), and whether any was changed by it."""
    if rescale == "expected":
        return [thin / (share or 1.0) for thin, share in zip(thinned, density, strict=True)], True
    ratios = [_l1_ratio(d, thin) if rescale else 1.0 for d, thin in zip(case.deltas, thinned, strict=True)]
    return [thin * ratio for thin, ratio in zip(thinned, ratios, strict=True)], any(r != 1.0 for r in ratios)


def task_arithmetic(
    case: Case, *, weight: Sequence[float], normalize: bool, lambda_: float, int8_mask: bool
) -> Expected:
    return _add_up(case, case.deltas, weight, normalize, lambda_)


def ties(
    case: Case, *, weight: Sequence[float], density: Sequence[float], normalize: bool, rescale: bool, lambda_: float,
    int8_mask: bool, elect: str, consensus_method: str, trim_scope: str,
) -> Expected:  # fmt: skip
    thinned = [_largest(delta, share) for delta, share in zip(case.deltas, density, strict=True)]
    thinned, scaled = _rescaled(case, thinned, rescale)
    return _elect(case, thinned, weight, normalize, lambda_, exact=len(set(weight)) == 1 and not scaled,
                  elect=elect, count=consensus_method)  # fmt: skip


def dare_linear(
    case: Case, *, weight: Sequence[float], density: Sequence[float], normalize: bool, rescale: bool | str,
    lambda_: float, int8_mask: bool,
) -> Expected:  # fmt: skip
    thinned, _ = _rescaled(case, _dropped(case, density), rescale, density)
    return _add_up(case, thinned, weight, normalize, lambda_)


def dare_ties(
    case: Case, *, weight: Sequence[float], density: Sequence[float], normalize: bool, rescale: bool, lambda_: float,
    int8_mask: bool, elect: str, consensus_method: str,
) -> Expected:  # fmt: skip
    thinned, scaled = _rescaled(case, _dropped(case, density), rescale, density)
    return _elect(case, thinned, weight, normalize, lambda_, exact=len(set(weight)) == 1 and not scaled,
                  elect=elect, count=consensus_method)  # fmt: skip


ORACLES: dict[str, Oracle] = {
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}

# Arguments by recipe name, beside the ones that every method is tried with.
EXTRA_CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [
        {"weight": (1.0, 1.0, 1.0), "normalize": False},
        {"weight": (2.0, -0.5, 0.0)},
        {"weight": (0.7, -0.7, 0.0)},
    ],
    "passthrough": [{"scale": (0.3,)}, {"scale": (-2.0,)}, {"scale": (0.0,)}],
    "slerp": [{"t": 0.0}, {"t": 1.0}, {"t": 0.85}],
    "task_arithmetic": [
        {"weight": (1.0, -0.4, 0.0), "lambda": 1.5},
        {"normalize": True},
        {"weight": (1.0, -1.0, 0.0), "normalize": True},
    ],
    "ties": [
        {"weight": (1.0, 1.0, 1.0), "density": (0.5, 0.5, 0.5)},
        {"weight": (0.5, 0.5, 0.5), "density": (1.0, 1.0, 1.0), "normalize": False},
        {"weight": (2.0, -2.0, 1.3), "normalize": True},
        {"weight": (0.4, 0.0, 1.1), "density": (0.0, 0.2, 1e-9), "rescale": True},
        {"normalize": False, "rescale": True, "lambda": -0.7},
        {"elect": "unweighted"},
        {"consensus_method": "count", "weight": (1.0, -0.4, 0.7)},
        {"elect": "unweighted", "consensus_method": "count", "normalize": False},
    ],
    "dare_linear": [
        {"rescale": False, "normalize": True},
        {"density": (0.0, 1.0, 1e-6)},
        {"rescale": "expected"},
        {"rescale": "expected", "density": (0.0, 1.0, 0.01)},
        {"weight": (1.0, -0.4, 0.0)},
    ],
    "dare_ties": [
        {"weight": (1.0, 1.0, 1.0), "rescale": False, "normalize": True},
        {"density": (0.0, 1.0, 0.01)},
        {"rescale": "expected", "normalize": True},
        {"weight": (-2.0, 2.0, 1.3), "normalize": True},
    ],
}

# What makes a method with a weight give its only model back; where a method always takes something away, it is absent.
LOSSLESS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
}
