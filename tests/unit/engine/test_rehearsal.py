"""Made-up weights are values of their dtype; nothing else is needed to run an op."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.engine import rehearsal
from cuvee.tensors.sources import Joined, Stored
from support.merging import op_of


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
@pytest.mark.parametrize("offset", [0, 7, 1 << 40])
def test_made_up_weights_are_values_of_their_dtype(dtype: str, offset: int) -> None:
    first = Stored("a", offset, dtype, (64, 32))
    second = Joined((Stored("b", offset, dtype, (32, 32)), Stored("b", offset + 999 * 8, dtype, (32, 32))), 0)
    pool = rehearsal._Pool(op_of("w", [first, second], dtype, "linear", {}, has_base=False), 0)
    values = [source.read(5, 2000, pool, np.dtype(np.float64)) for source in (first, second)]
    assert all(value.shape == (1995,) and np.isfinite(value).all() for value in values)
    if dtype != "I64":
        assert 0.001 < values[0].std() < 0.1
