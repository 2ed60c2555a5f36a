"""RAM: changes of one model alone are kept whole, changes that several share are averaged."""

from __future__ import annotations

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, Prepared
from cuvee.numerics.arrays import as_mask, sum_of, to_dtype
from cuvee.numerics.block import Array, Block
from cuvee.numerics.scan import Scan

_PAPER = "Yuan et al. 2026, Reinforced agent merging"
Factors = tuple[float, ...]


def amplify(scan: Scan, *, r: float, alpha: float, epsilon: float) -> Factors:
    """Each model's factor for what it alone changed: 1 + r * clip(shared / unique, 0, alpha), counts per tensor."""

    def counts(block: Block) -> list[Array]:
        active = _active(block, epsilon)
        number = _number(active)
        return [as_mask(a & keep, block[0]) for a in active for keep in (number > 1, number == 1)]

    totals = scan.sum(counts).reshape(-1, 2)
    ratios = [shared / unique if unique else (float("inf") if shared else 0.0) for shared, unique in totals]
    return tuple(1.0 + r * min(max(ratio, 0.0), alpha) for ratio in ratios)


@merge_method("ram", base="required", models=(1, None), reference=_PAPER)
def ram(deltas: Deltas, *, epsilon: float = 1e-5) -> Array:
    """The base plus, element by element, the mean of the changes that are large enough to count.

    An entry of d_i is active where |d_i| > epsilon; the result is the mean of the active ones: the one change where a
    single model is active, nothing where none is.

    Use it for agents trained by reinforcement learning, whose changes are sparse and hardly overlap.

    Args:
        epsilon: Changes up to this count as none.
    """
    active = _active(deltas, epsilon)
    total = sum_of(delta * as_mask(a, delta) for delta, a in zip(deltas, active, strict=True))
    number = as_mask(_number(active), total)
    return total / (number + (number == 0))


@merge_method("ramplus_tl", base="required", models=(1, None), prepare=amplify, reference=_PAPER)
def ramplus_tl(
    deltas: Deltas, factors: Prepared[Factors], *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> Array:
    """RAM with each model's own part amplified, to make up for what averaging takes from the shared part.

    As `ram`, and where model i alone is active its change is multiplied by
    1 + r * clip(shared_i / unique_i, 0, alpha), the counts taken over the whole tensor.

    Use it as `ram`, where shared changes make up much of what the models learned.

    Args:
        r: Strength of the amplification.
        alpha: Bound of the ratio of shared to unique entries.
        epsilon: Changes up to this count as none.
    """
    active = _active(deltas, epsilon)
    number = _number(active)
    alone = as_mask(number == 1, deltas[0])
    parts = zip(deltas, active, factors, strict=True)
    total = sum_of(delta * as_mask(a, delta) * (alone * (factor - 1.0) + 1.0) for delta, a, factor in parts)
    count = as_mask(number, total)
    return total / (count + (count == 0))


def _active(block: Block, epsilon: float) -> list[Array]:
    return [abs(delta) > epsilon for delta in block]


def _number(active: list[Array]) -> Array:
    return sum_of(to_dtype(a, "uint8") for a in active)
