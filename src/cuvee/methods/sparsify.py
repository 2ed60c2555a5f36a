"""How task vectors are thinned out: by magnitude or at random, with the norm restored where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cuvee.numerics.arrays import as_mask
from cuvee.numerics.block import Array, Block
from cuvee.numerics.random import derive_key, draw_below
from cuvee.numerics.scan import Scan
from cuvee.numerics.select import KEEP_ALL, Cut

Thin = TypeVar("Thin", "Trim", "Drop")


@dataclass(frozen=True)
class Trim:
    """Keeps, of each model's delta, what lies at or above its cut in magnitude; then scales it."""

    cuts: tuple[Cut, ...]
    scales: tuple[float, ...]

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        return [
            _scaled(delta if cut == KEEP_ALL else delta * as_mask(cut.keep(abs(delta), deltas.start), delta), scale)
            for delta, cut, scale in zip(deltas, self.cuts, self.scales, strict=True)
        ]


@dataclass(frozen=True)
class Drop:
    """Keeps each element of model i's delta with probability `densities[i]`; then scales it."""

    densities: tuple[float, ...]
    scales: tuple[float, ...]

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        return [
            _scaled(self._thin(delta, position, density, deltas), scale)
            for position, (delta, density, scale) in enumerate(zip(deltas, self.densities, self.scales, strict=True))
        ]

    def _thin(self, delta: Array, position: int, density: float, block: Block) -> Array:
        if density >= 1.0:
            return delta
        return delta * as_mask(draw_below(density, derive_key(block.key, position), block.start, delta), delta)


def trim(scan: Scan, *, density: Sequence[float], rescale: bool) -> Trim:
    """Exactly the max(1, int(density * n)) largest of each delta; the lowest index wins among equals."""
    kept = [max(1, int(share * scan.size)) for share in density]
    if all(count >= scan.size for count in kept):
        return Trim((KEEP_ALL,) * scan.models, (1.0,) * scan.models)
    cuts = scan.kth_largest(lambda block: [abs(delta) for delta in block], kept)
    return _restored(Trim(cuts, (1.0,) * scan.models), scan, rescale=rescale)


def drop(scan: Scan, *, density: Sequence[float], rescale: bool) -> Drop:
    """A random mask for each delta (DARE, Yu et al. 2023)."""
    thin = Drop(tuple(density), (1.0,) * scan.models)
    return thin if min(density) >= 1.0 else _restored(thin, scan, rescale=rescale)


def _restored(thin: Thin, scan: Scan, *, rescale: bool) -> Thin:
    """The same, scaled so that each thinned delta has the l1 norm it had before (if `rescale`)."""
    if not rescale:
        return thin
    count = scan.models
    sums = scan.sum(lambda block: [abs(array) for array in (*block, *thin(block))])
    ratios = tuple(
        float(full / left) if left > 0 else 1.0 for full, left in zip(sums[:count], sums[count:], strict=True)
    )
    return replace(thin, scales=ratios)


def _scaled(array: Array, scale: float) -> Array:
    return array if scale == 1.0 else array * scale
