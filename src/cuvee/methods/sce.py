"""SCE: select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cuvee.methods.consensus import elect_along
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, Prepared, Share
from cuvee.numerics.arrays import as_mask, sum_of
from cuvee.numerics.block import Array, Block
from cuvee.numerics.combine import variance_of
from cuvee.numerics.kept import KEEPING, KeptScores, largest_share
from cuvee.numerics.scan import Product, Scan
from cuvee.numerics.select import KEEP_ALL, Cut


@dataclass(frozen=True)
class Selection:
    """Which positions stay, and how much each model counts."""

    cut: Cut
    kept: KeptScores | None = None
    """The variances of a tensor of moderate size."""
    weights: tuple[float, ...] = ()

    def mask(self, deltas: Block) -> Array | float:
        """1 at the selected positions, else 0."""
        if self.cut == KEEP_ALL:
            return 1.0
        near = self.kept is not None and isinstance(deltas[0], np.ndarray)
        variance = self.kept.of(deltas) if self.kept is not None and near else variance_of(deltas)
        return as_mask(self.cut.keep(variance, deltas.start), deltas[0])

    def squares(self, deltas: Block) -> list[Product]:
        """Each model's squares at the selected positions, as products to be added up."""
        mask = self.mask(deltas)
        return [(delta, delta * mask) for delta in deltas]


def select(scan: Scan, *, select_topk: float, uniform_below: float) -> Selection:
    """The positions of largest variance across the models, and the models' shares of the squares there."""
    chosen = Selection(KEEP_ALL)
    if select_topk < 1.0:
        chosen = Selection(*largest_share(scan, variance_of, select_topk))
    squares = scan.sum(chosen.squares) / max(scan.size, 1)
    total = float(squares.sum())
    if total <= 0 or total < uniform_below:
        return replace(chosen, weights=(1.0 / scan.models,) * scan.models)
    return replace(chosen, weights=tuple(float(square / total) for square in squares))


@merge_method(
    "sce",
    base="required",
    models=(1, None),
    prepare=select,
    keeps=KEEPING,
    reference="Wan et al. 2024, FuseChat: knowledge fusion of chat models, arXiv:2408.07990",
)
def sce(
    deltas: Deltas,
    selection: Prepared[Selection],
    *,
    select_topk: Share = 1.0,
    uniform_below: float = 1e-6,
    int8_mask: bool = False,
) -> Array:
    """Task vectors at the positions where the models differ most, weighted by their energy, minority signs erased.

    Keeps the select_topk fraction (of the non-zero ones) of positions by variance across the d_i; weights are the mean
    squares of the d_i there, normalised; s is the sign of the sum of the d_i; the result is the weighted mean of those
    with sign s.

    Use it for models of different training (the paper fuses chat models), with select_topk around 0.1 to 0.5 and no
    weights to tune.

    Args:
        select_topk: Fraction of positions to keep.
        uniform_below: If the mean squares add up to less than this, every model counts equally; 0 switches that off.
        int8_mask: Accepted for old recipes; without effect.
    """
    elected = elect_along(deltas.arrays, selection.weights, sum_of(deltas), normalize=True)
    return elected * selection.mask(deltas)
