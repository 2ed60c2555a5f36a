"""Model stock: as far from the base towards the mean as the angles between the fine-tunes say."""

from __future__ import annotations

import math

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, Prepared
from cuvee.numerics.block import Array
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.geometry import stock_ratio
from cuvee.numerics.rows import stock_ratios
from cuvee.numerics.scan import Scan


def ratio(scan: Scan, *, filter_wise: bool) -> float | None:
    """The interpolation ratio of the whole tensor; None if each row has its own."""
    if filter_wise:
        return None
    t = stock_ratio(scan.gram())
    # The mean cosine is then so near zero that rounding in float32 would show.
    return stock_ratio(scan.gram(wide=True)) if 0 < abs(t) * math.sqrt(scan.size) < scan.models else t


@merge_method(
    "model_stock",
    base="required",
    models=(2, None),
    scope="rows",
    prepare=ratio,
    reference="Jang et al. 2024, Model stock: all we need is just a few fine-tuned models, arXiv:2403.19522",
)
def model_stock(deltas: Deltas, t: Prepared[float | None], *, filter_wise: bool = False) -> Array:
    """The base moved towards the fine-tunes' mean by a ratio that their angles determine.

    t W_mean + (1 - t) W_0 with t = N c / (1 + (N - 1) c) and c the mean pairwise cosine of the d_i. No weights to tune.

    Use it for two or more fine-tunes of one base on the same task; it stays close to the base where they disagree.

    Args:
        filter_wise: Compute c and t for each row of the tensor.
    """
    if t is not None:
        return weighted_sum(deltas, [t] * len(deltas), divide_by=len(deltas))
    return weighted_sum(deltas, [1.0] * len(deltas), divide_by=len(deltas)) * stock_ratios(deltas.arrays)
