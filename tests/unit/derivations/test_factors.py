"""Derivations of one matrix's change, called directly on arrays in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cuvee.derivations import factors
from cuvee.derivations.registry import Input, Inputs

RNG = np.random.default_rng(4)


def inputs(*arrays: Any) -> Inputs:
    sources = tuple(Input(a.shape, lambda start, stop, a=a: a.reshape(-1)[start:stop].copy()) for a in arrays)
    return Inputs(sources, map, 7)


def pair(shape: tuple[int, ...]) -> tuple[Any, Any]:
    base = RNG.standard_normal(shape).astype(np.float32)
    return base + RNG.standard_normal(shape).astype(np.float32), base


@pytest.mark.parametrize("shape", [(7,), (), (9, 5), (4, 3, 2, 2)])
def test_change_is_the_squared_norm(shape: tuple[int, ...]) -> None:
    tuned, base = pair(shape)
    (found,) = factors.change(inputs(tuned, base))
    assert found.shape == (1,)
    assert found[0] == pytest.approx(float(np.square((tuned - base).astype(np.float64)).sum()), rel=1e-12)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("shape", [(30, 11), (11, 30)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_factors_multiply_to_the_change(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], transposed: bool, held: bool, exact: bool
) -> None:
    monkeypatch.setattr(factors, "HELD_ELEMENTS", 1 << 24 if held else 1)
    tuned, base = pair(shape)
    change = tuned - base
    total = float(np.square(change).sum())
    options = {
        "total": total,
        "transposed": transposed,
        "distribute": True,
        "exact": exact,
        "dtype": "F32",
        "head": False,
    }
    down, up, values, squares = factors.low_rank(inputs(tuned, base), rank=11, **options)
    assert down.shape[0] == up.shape[1] == 11
    product = (up @ down).T if transposed else up @ down
    assert product == pytest.approx(change, abs=1e-5)
    assert values == pytest.approx(np.linalg.svd(change, compute_uv=False), rel=1e-4)
    assert squares[0] == total
    down, up, values, squares = factors.low_rank(inputs(tuned, base), rank=3, **options)
    product = (up @ down).T if transposed else up @ down
    assert squares[1] == pytest.approx(float(np.square(change - product).sum()), rel=1e-5)


def test_a_tied_head_gets_the_same_product() -> None:
    tuned, base = pair((12, 6))
    options = {"total": 1.0, "transposed": True, "distribute": True, "exact": True, "dtype": "F32", "head": True}
    down, up, _, _, head_down, head_up = factors.low_rank(inputs(tuned, base), rank=6, **options)
    assert (down.shape, up.shape) == ((6, 12), (6, 6))
    assert pytest.approx(tuned - base, abs=1e-5) == (up @ down).T
    assert head_up @ head_down == pytest.approx(tuned - base, abs=1e-5)


@pytest.mark.parametrize("count", [5, 11])
def test_spectrum(count: int) -> None:
    tuned, base = pair((30, 11))
    change = (tuned - base).astype(np.float64)
    (found,) = factors.spectrum(inputs(tuned, base), count=count, total=float(np.square(change).sum()))
    assert found == pytest.approx(np.linalg.svd(change, compute_uv=False)[:count], rel=1e-5 if count == 11 else 1e-2)


def test_doubles_stay_doubles() -> None:
    base = np.ones((8, 6))
    tuned = base + 1e-10 * RNG.standard_normal((8, 6))
    (found,) = factors.change(inputs(tuned, base))
    assert math.sqrt(found[0]) == pytest.approx(float(np.linalg.norm(tuned - base)), rel=1e-9)
