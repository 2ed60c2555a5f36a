"""How task vectors are thinned out: by magnitude or at random, with the norm restored where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cuvee.errors import MethodError
from cuvee.numerics.arrays import as_mask
from cuvee.numerics.block import Array, Block
from cuvee.numerics.by_rank import draw_by_rank
from cuvee.numerics.masks import KeptMasks
from cuvee.numerics.random import derive_key, draw_below
from cuvee.numerics.scan import Product, Scan
from cuvee.numerics.select import KEEP_ALL, Cut

Sorted = TypeVar("Sorted", "Trim", "Band")


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
    """Keeps elements of model i's delta at random, with probability `densities[i]` on the mean; then scales them.

    The probability rises linearly with the magnitude's rank in its row, by `epsilons[i]` to either side of the mean;
    blocks then hold whole rows.
    """

    densities: tuple[float, ...]
    epsilons: tuple[float, ...]
    scales: tuple[float, ...]
    remembered: KeptMasks | None = None
    """Masks drawn while scanning."""

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        masks = (self.remembered.of(deltas) if self.remembered else None) or self.masks(deltas)
        return [_masked(mask, delta, scale) for mask, delta, scale in zip(masks, deltas, self.scales, strict=True)]

    def masks(self, deltas: Block) -> list[Array]:
        """Which elements of each delta survive."""
        masks = []
        for position, (delta, density, epsilon) in enumerate(zip(deltas, self.densities, self.epsilons, strict=True)):
            key = derive_key(deltas.key, position)
            if epsilon == 0:
                masks.append(draw_below(density, key, deltas.start, delta))
            else:
                low, high = density - epsilon, density + epsilon
                masks.append(draw_by_rank(abs(delta), low, high, key, deltas.start))
        return masks


@dataclass(frozen=True)
class Band:
    """Keeps, of each model's delta, what lies at or above one cut in magnitude and below another; then scales it."""

    outer: tuple[Cut, ...]
    inner: tuple[Cut, ...]
    scales: tuple[float, ...]

    def __call__(self, deltas: Block) -> list[Array]:
        """The thinned deltas of a block."""
        thinned = []
        for delta, outer, inner, scale in zip(deltas, self.outer, self.inner, self.scales, strict=True):
            size = abs(delta)
            mask = outer.keep(size, deltas.start) & ~inner.keep(size, deltas.start)
            thinned.append(_masked(mask, delta, scale))
        return thinned


def trim(scan: Scan, *, density: Sequence[float], rescale: bool) -> Trim:
    """Exactly the max(1, int(density * n)) largest of each delta, none at density 0; of equals the first ones."""
    kept = [max(1, int(share * scan.size)) if share > 0 else 0 for share in density]
    if all(count >= scan.size for count in kept):
        return Trim((KEEP_ALL,) * scan.models, (1.0,) * scan.models)
    cuts = scan.kth_largest(lambda block: [abs(delta) for delta in block], kept)
    return _restored(Trim(cuts, (1.0,) * scan.models), scan, rescale=rescale)


def drop(scan: Scan, *, density: Sequence[float], rescale: bool) -> Drop:
    """A random mask for each delta (DARE, Yu et al. 2023)."""
    thin = Drop(tuple(density), (0.0,) * scan.models, (1.0,) * scan.models)
    return thin if min(density) >= 1.0 or not rescale else _remembering(thin, scan)


def ranked_drop(scan: Scan, *, density: Sequence[float], epsilon: Sequence[float], rescale: bool) -> Drop:
    """A random mask by rank for each delta (DELLA, Deep et al. 2024); at density 0 or 1 nothing or all stays."""
    spread = tuple(by if 0 < share < 1 else 0.0 for share, by in zip(density, epsilon, strict=True))
    thin = Drop(tuple(density), spread, (1.0,) * scan.models)
    return _remembering(thin, scan) if rescale and min(density) < 1.0 else thin


def _remembering(thin: Drop, scan: Scan) -> Drop:
    """The same, scaled so that each thinned delta has the l1 norm it had before, its masks kept for the merge."""
    remembered = KeptMasks(scan.size * scan.models)

    def sizes(block: Block) -> list[Array | Product]:
        masks = thin.masks(block)
        remembered.put(block, masks)
        whole = [abs(delta) for delta in block]
        return [*whole, *((size, as_mask(mask, size)) for size, mask in zip(whole, masks, strict=True))]

    return replace(thin, scales=_ratios(scan.sum(sizes).tolist()), remembered=remembered)


def band(scan: Scan, *, density: Sequence[float], gamma: Sequence[float], rescale: bool) -> Band:
    """Neither the int(gamma n) largest of each delta nor the smallest: int(density n) in all."""
    kept = [int(share * scan.size) for share in density]
    largest = [min(int(share * scan.size), scan.size - count) for share, count in zip(gamma, kept, strict=True)]
    bounds = [top + count for top, count in zip(largest, kept, strict=True)]
    cuts = scan.kth_largest(lambda block: [abs(delta) for delta in block] * 2, [*bounds, *largest])
    thin = Band(cuts[: scan.models], cuts[scan.models :], (1.0,) * scan.models)
    return _restored(thin, scan, rescale=rescale)


def check_della(*, density: Sequence[float], epsilon: Sequence[float]) -> None:
    """Raises a MethodError if a probability would leave (0, 1). A density of 0 or 1 keeps nothing or all, as it is."""
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not 0 < share - spread <= share + spread < 1:
            raise MethodError(
                "density - epsilon and density + epsilon must lie between 0 and 1",
                found=f"density {share} and epsilon {spread}",
                fix="lower epsilon, or move density away from 0 and 1",
                parameter="epsilon",
            )


def _restored(thin: Sorted, scan: Scan, *, rescale: bool) -> Sorted:
    """The same, scaled so that each thinned delta has the l1 norm it had before (if `rescale`)."""
    if not rescale:
        return thin
    apply: Callable[[Block], list[Array]] = thin

    def sizes(block: Block) -> list[Array]:
        whole: Block = block.with_arrays(tuple(map(abs, block)))
        return [*whole, *apply(whole)]

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
