"""How task vectors are thinned out: by magnitude or at random, with the norm restored where asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cuvee.numerics.arrays import as_mask
from cuvee.numerics.block import Array, Block
from cuvee.numerics.random import derive_key, draw_below
from cuvee.numerics.scan import Scan
from cuvee.numerics.select import KEEP_ALL, Cut

_REMEMBERED = 1 << 23  # elements of a tensor whose masks are kept between scan and merge: a byte each


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
    remembered: Mapping[tuple[int, int], list[Array]] = field(default_factory=dict)
    """Masks drawn while scanning a tensor of moderate size, by a block's start and size."""

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        masks = self.remembered.get(_place(deltas)) or self.masks(deltas)
        return [_masked(mask, delta, scale) for mask, delta, scale in zip(masks, deltas, self.scales, strict=True)]

    def masks(self, deltas: Block) -> list[Array]:
        """Which elements of each delta survive."""
        return [
            draw_below(density, derive_key(deltas.key, position), deltas.start, delta)
            for position, (delta, density) in enumerate(zip(deltas, self.densities, strict=True))
        ]


def _place(block: Block) -> tuple[int, int]:
    return block.start, math.prod(block[0].shape)


def trim(scan: Scan, *, density: Sequence[float], rescale: bool) -> Trim:
    """Exactly the max(1, int(density * n)) largest of each delta; the lowest index wins among equals."""
    kept = [max(1, int(share * scan.size)) for share in density]
    if all(count >= scan.size for count in kept):
        return Trim((KEEP_ALL,) * scan.models, (1.0,) * scan.models)
    cuts = scan.kth_largest(lambda block: [abs(delta) for delta in block], kept)
    return _restored(Trim(cuts, (1.0,) * scan.models), scan, rescale=rescale)


def drop(scan: Scan, *, density: Sequence[float], rescale: bool) -> Drop:
    """A random mask for each delta (DARE, Yu et al. 2023)."""
    remembered: dict[tuple[int, int], list[Array]] = {}
    thin = Drop(tuple(density), (1.0,) * scan.models, remembered)
    if min(density) >= 1.0 or not rescale:
        return thin

    def sizes(block: Block) -> list[Array]:
        masks = thin.masks(block)
        if scan.size <= _REMEMBERED:
            remembered[_place(block)] = masks
        whole = [abs(delta) for delta in block]
        return [*whole, *(size * as_mask(mask, size) for size, mask in zip(whole, masks, strict=True))]

    return replace(thin, scales=_ratios(scan.sum(sizes).tolist()))


def _restored(thin: Trim, scan: Scan, *, rescale: bool) -> Trim:
    """The same, scaled so that each thinned delta has the l1 norm it had before (if `rescale`)."""
    if not rescale:
        return thin

    def sizes(block: Block) -> list[Array]:
        whole = block.with_arrays(tuple(map(abs, block)))
        return [*whole, *thin(whole)]

    return replace(thin, scales=_ratios(scan.sum(sizes).tolist()))


def _ratios(sums: Sequence[float]) -> tuple[float, ...]:
    """What restores each sum of the second half to its counterpart in the first; 1 where nothing is left to scale."""
    half = len(sums) // 2
    return tuple(full / left if left > 0 else 1.0 for full, left in zip(sums[:half], sums[half:], strict=True))


def _masked(mask: Array, delta: Array, scale: float) -> Array:
    kept = as_mask(mask, delta)
    if scale != 1.0:
        kept *= scale
    kept *= delta
    return kept
