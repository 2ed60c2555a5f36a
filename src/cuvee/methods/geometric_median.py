"""The geometric median: a mean that one outlier cannot pull away."""

from __future__ import annotations

from cuvee.errors import MethodError
from cuvee.methods.registry import merge_method
from cuvee.methods.spec import PerModel, Prepared, Weights
from cuvee.numerics.block import Array, Block
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.median import median_coefficients
from cuvee.numerics.scan import Scan


def possible(*, weight: tuple[float, ...]) -> None:
    """Raises a MethodError for weights with which distances do not add up."""
    if min(weight) < 0 or sum(weight) == 0:
        raise MethodError(
            "a geometric median needs weights of which none is negative and one is positive",
            found=", ".join(map(str, weight)),
            parameter="weight",
        )


def balance(scan: Scan, *, weight: tuple[float, ...], max_iter: int, tol: float) -> tuple[float, ...]:
    """The coefficients of the models in their median, iterated on the Gram matrix of their differences."""
    return median_coefficients(scan.gram(_differences), weight, max_iter, tol)


@merge_method(
    "geometric_median",
    base="none",
    models=(1, None),
    prepare=balance,
    check=possible,
    reference="Weiszfeld 1937; Vardi and Zhang 2000, The multivariate L1-median and associated data depth",
)
def geometric_median(
    weights: Weights,
    coefficients: Prepared[tuple[float, ...]],
    *,
    weight: PerModel[float] = (1.0,),
    max_iter: int = 1000,
    tol: float = 1e-15,
) -> Array:
    """The tensor with the smallest weighted sum of distances to the models' tensors.

    argmin_W sum_i w_i ||W - W_i||, each tensor taken as one vector. Like the mean, but a model that lies far from all
    others hardly moves it: as long as it has less than half of the weight, it cannot drag the result along. Two models
    of equal weight give their mean.

    Use it for many models of unknown quality, of which a few may be broken.

    Args:
        weight: Share of this model; must not be negative.
        max_iter: Most steps towards the median.
        tol: Steps end when the coefficients move by less than this.
    """
    return weights[0] + weighted_sum(_differences(weights), coefficients)


def _differences(block: Block) -> tuple[Array, ...]:
    """Each model's distance from the first: small numbers, so that nothing is lost where the models hardly differ."""
    return tuple(array - block[0] for array in block)
