"""NuSLERP: spherical interpolation with weights instead of t, of models or task vectors, whole or by rows."""

from __future__ import annotations

from typing import Any

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel, Prepared
from cuvee.numerics.arrays import namespace
from cuvee.numerics.block import Array, Block
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.geometry import slerp_coefficients
from cuvee.numerics.rows import of_block, row_dots, slerp_ratios
from cuvee.numerics.scan import Scan

_PARALLEL = 1.0 - 1e-15  # only where the arc is undefined: sin(angle) below 1e-8


def arcs(
    scan: Scan, *, weight: tuple[float, ...], nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> tuple[Any, Any] | None:
    """The two coefficients: of the flattened tensors, or for each column; None if each row has its own."""
    if nuslerp_flatten or len(scan.shape) < 2:
        return slerp_coefficients(scan.gram(), _fraction(weight), _PARALLEL)
    if not nuslerp_row_wise:
        return None
    aa, ab, bb = scan.column_sums(lambda block: [(block[i], block[j]) for i, j in ((0, 0), (0, 1), (1, 1))])
    return slerp_ratios(aa, ab, bb, _fraction(weight), _PARALLEL)


@merge_method("nuslerp", base="optional", models=(2, 2), scope="rows", prepare=arcs)
def nuslerp(
    deltas: Deltas,
    coefficients: Prepared[tuple[Any, Any] | None],
    *,
    weight: PerModel[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Array:
    """Spherical interpolation of two models at t = w_2 / (w_1 + w_2); of their task vectors if there is a base.

    Like slerp, with weights; linear only where the arc is undefined.

    Use it for two models where you think in weights rather than in t, or to interpolate task vectors along an arc.

    Args:
        weight: Share of this model; t is 0.5 if the two add up to nothing.
        nuslerp_flatten: Take each tensor as one vector; otherwise its vectors along the last dimension, one by one.
        nuslerp_row_wise: If not flattened, take the vectors along the first dimension.
    """
    if coefficients is None:
        a, b = deltas
        coefficients = slerp_ratios(row_dots(a, a), row_dots(a, b), row_dots(b, b), _fraction(weight), _PARALLEL)
    elif isinstance(coefficients[0], float):
        return weighted_sum(deltas, coefficients)
    else:
        coefficients = of_block(coefficients[0], deltas), of_block(coefficients[1], deltas)
    return _by_vector(deltas, coefficients)


def _by_vector(deltas: Block, coefficients: tuple[Any, Any]) -> Array:
    xp = namespace(deltas[0])
    first, second = (xp.astype(c, deltas[0].dtype) for c in coefficients)
    return deltas[0] * first + deltas[1] * second


def _fraction(weight: tuple[float, ...]) -> float:
    total = weight[0] + weight[1]
    return weight[1] / total if abs(total) > 1e-8 else 0.5
