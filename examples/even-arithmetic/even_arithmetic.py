"""Task arithmetic in which every model's change has the same length."""

from cuvee.methods.registry import merge_method
from cuvee.methods.spec import Deltas, PerModel, Prepared
from cuvee.numerics.block import Array
from cuvee.numerics.combine import weighted_sum
from cuvee.numerics.scan import Scan


def even_out(scan: Scan) -> tuple[float, ...]:
    """For each delta, the factor that gives it the mean length of all."""
    lengths = scan.gram().diagonal() ** 0.5
    return tuple(float(lengths.mean() / length) if length > 0 else 0.0 for length in lengths)


@merge_method("even_arithmetic", base="required", models=(1, None), prepare=even_out)
def even_arithmetic(deltas: Deltas, factors: Prepared[tuple[float, ...]], *, weight: PerModel[float] = (1.0,)) -> Array:
    """The base plus the sum of the models' changes, all brought to one length.

    Args:
        weight: Strength of this model's change.
    """
    return weighted_sum(deltas.arrays, [w * f for w, f in zip(weight, factors, strict=True)])
