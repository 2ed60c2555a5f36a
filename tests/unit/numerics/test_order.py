"""Ranks, against sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cuvee.numerics.order import of_ranks

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(20_000)
KINDS = {
    "normal": NORMAL,
    "few distinct": np.round(NORMAL * 4) / 4,
    "all equal": np.full(20_000, 0.5),
    "one far away": np.append(NORMAL, 1e30),
    "subnormal": NORMAL * 1e-42,
    "infinite": np.append(NORMAL, np.inf),
    "largest": np.sign(NORMAL) * 3.4e38,
    "neighbours": 1 + RNG.integers(0, 9, 20_000) * 2.0**-23,
}


def check(values: Array) -> None:
    size = values.size
    ranks = sorted({0, size // 3, size // 2, size // 2 + 1, size - 1} & set(range(size)))
    assert of_ranks(values, ranks) == np.sort(values)[ranks].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_values(kind: str, dtype: type) -> None:
    values = KINDS[kind].astype(dtype)
    with np.errstate(over="ignore"):
        check(values)


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_any_values(few: Array, times: int) -> None:
    check(np.repeat(few, times))
