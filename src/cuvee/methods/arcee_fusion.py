"""Arcee fusion: only the changes that matter most to a row's distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Prepared, Weights
from cuvee.numerics.arrays import as_mask, like, namespace, to_numpy
from cuvee.numerics.block import Array, Block
from cuvee.numerics.kept import KEEPING, of_ranks
from cuvee.numerics.rows import softmax_divergence
from cuvee.numerics.scan import Scan


@dataclass(frozen=True)
class Importance:
    """The divergence of each row, and the importance from which on a change is kept."""

    divergence: np.ndarray[Any, Any]
    bound: float

    def of(self, weights: Block) -> Array:
        """The importance of each element of a block of whole rows."""
        base, other = weights
        first = weights.start // base.shape[-1]
        rows = self.divergence[first : first + base.shape[0]]
        return abs(other - base) * namespace(base).asarray(rows[:, None], **like(base))


def weigh(scan: Scan) -> Importance:
    """The rows' divergences, and the median of the importances plus 1.5 times their interquartile range, all exact.

    As in mergekit, a quantile is a value that is there: of n ordered ones that at place int(p (n - 1)).
    """
    divergence = np.concatenate(scan.each(lambda block: to_numpy(softmax_divergence(*block))))
    last = scan.size - 1
    ranks = (last // 4, last // 2, 3 * last // 4)
    first, median, third = of_ranks(scan, Importance(divergence, 0.0).of, ranks)
    return Importance(divergence, median + 1.5 * (third - first))


@merge_method("arcee_fusion", base="required", models=(1, 1), scope="rows", prepare=weigh, keeps=KEEPING)
def arcee_fusion(weights: Weights, importance: Prepared[Importance]) -> Array:
    """The base with those changes of the other model whose importance stands out.

    importance = |d| * KL(softmax(W_1 row) || softmax(W_0 row)); d stays where the importance is at least
    median + 1.5 (q_3 - q_1) over the tensor. Quantiles are exact: of n ordered values the one at place int(p (n - 1)).

    Use it to carry the most telling changes of one model over to another without a parameter to tune.
    """
    base, other = weights
    delta = other - base
    return base + delta * as_mask(importance.of(weights) >= importance.bound, delta)
