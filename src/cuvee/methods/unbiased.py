"""Random masks whose survivors are divided by their probability, so that a thinned delta is the delta in expectation.

This is what the papers of DARE and DELLA do, and what `rescale: expected` asks for. By default survivors are scaled to
the l1 norm that the delta had, as in mergekit: that keeps the norm of this very draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cuvee.methods import sparsify
from cuvee.methods.sparsify import Drop
from cuvee.numerics.arrays import as_mask
from cuvee.numerics.block import Array, Block
from cuvee.numerics.rows import mid_ranks
from cuvee.numerics.scan import Scan

Rescale = bool | Literal["expected"]


@dataclass(frozen=True)
class DividedDrop:
    """Keeps elements at random by rank, each divided by the probability that it had to survive."""

    drop: Drop

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block of whole rows."""
        masks = self.drop.masks(deltas)
        parts = zip(masks, deltas, self.drop.densities, self.drop.epsilons, strict=True)
        return [
            delta * as_mask(mask, delta) / probability(delta, density, epsilon)
            for mask, delta, density, epsilon in parts
        ]


def probability(delta: Array, density: float, epsilon: float) -> Array | float:
    """How probably each element of `[rows, columns]` survives: density - epsilon + 2 epsilon r / (columns - 1).

    r is its magnitude's rank in its row, from 0; equal magnitudes share the mean of their ranks.
    """
    columns = delta.shape[-1]
    if epsilon == 0 or columns == 1:
        return density or 1.0  # at density 0 nothing stays that would be divided
    return mid_ranks(abs(delta)) * (2 * epsilon / (columns - 1)) + (density - epsilon)


def drop(scan: Scan, *, density: Sequence[float], rescale: Rescale) -> Drop:
    """A random mask for each delta; survivors divided by `density` if `rescale` is `expected` (Yu et al. 2023)."""
    if rescale != "expected":
        return sparsify.drop(scan, density=density, rescale=rescale)
    scales = tuple(1.0 / share if share > 0 else 1.0 for share in density)
    return Drop(tuple(density), (0.0,) * scan.models, scales)


def ranked_drop(
    scan: Scan, *, density: Sequence[float], epsilon: Sequence[float], rescale: Rescale
) -> Drop | DividedDrop:
    """A random mask by rank; survivors divided by their probability if `rescale` is `expected` (Deep et al. 2024)."""
    thin = sparsify.ranked_drop(scan, density=density, epsilon=epsilon, rescale=rescale is True)
    return DividedDrop(thin) if rescale == "expected" else thin
