"""Angles and norms from Gram matrices: K x K numbers in, K coefficients out, whatever the formula iterates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_PARALLEL = 0.9995


def slerp_coefficients(gram: np.ndarray[Any, Any], t: float) -> tuple[float, float]:
    """(s0, s1) such that s0 * v0 + s1 * v1 lies at fraction `t` of the arc from v0 to v1 (Shoemake 1985).

    Args:
        gram: `[2, 2]` dot products of v0 and v1, float64. Directions come from it; the original magnitudes are kept,
        because
            the coefficients apply to the vectors as they are. A zero vector is not normalised.
        t: 0 gives v0, 1 gives v1.

    Nearly parallel or opposed vectors (|cos| > 0.9995) are interpolated linearly, as the arc is then undefined or
    straight.

    """
    norms = [math.sqrt(gram[i, i]) or 1.0 for i in range(2)]
    cosine = float(gram[0, 1]) / (norms[0] * norms[1])
    if not math.isfinite(cosine) or abs(cosine) > _PARALLEL:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
