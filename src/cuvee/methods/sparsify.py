"""How task vectors are thinned out: by magnitude or at random, with the norm restored where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
            delta * scale if cut == KEEP_ALL else _masked(cut.keep(abs(delta), deltas.start), delta, scale)
            for delta, cut, scale in zip(deltas, self.cuts, self.scales, strict=True)
        ]


@dataclass(frozen=True)
class Drop:
    """Keeps each element of model i's delta with probability `densities[i]`; then scales it."""

    densities: tuple[float, ...]
    scales: tuple[float, ...]

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        masks = [
            draw_below(density, derive_key(deltas.key, position), deltas.start, delta)
            for position, (delta, density) in enumerate(zip(deltas, self.densities, strict=True))
        ]
        return [_masked(mask, delta, scale) for mask, delta, scale in zip(masks, deltas, self.scales, strict=True)]


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
    apply: Callable[[Block], list[Array]] = thin

    def sizes(block: Block) -> list[Array]:
        whole: Block = block.with_arrays(tuple(map(abs, block)))
        return [*whole, *apply(whole)]

    sums = scan.sum(sizes)
    ratios = tuple(
        float(full / left) if left > 0 else 1.0 for full, left in zip(sums[:count], sums[count:], strict=True)
    )
    return replace(thin, scales=ratios)


def _masked(mask: Array, delta: Array, scale: float) -> Array:
    kept = as_mask(mask, delta)
    if scale != 1.0:
        kept *= scale
    kept *= delta
    return kept
