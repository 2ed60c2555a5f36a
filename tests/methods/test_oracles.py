"""Law 4: each method, run by the engine, equals a naive float64 implementation within one rounding of the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.methods.stages import STAGES
from cuvee.numerics.random import derive_key
from methods.cases import METHODS, arguments, bases, input_count, models, spec_of
from methods.more_oracles import MORE_CASES, MORE_ORACLES
from methods.new_oracles import NEW_CASES, NEW_ORACLES, staged
from methods.oracles import EXTRA_CASES, Case, Expected
from methods.oracles import ORACLES as FIRST_ORACLES
from support.checkpoints import Array
from support.merging import SEED, merge_arrays, ulp

SHAPES: dict[str, tuple[int, ...]] = {"layers.0.weight": (170, 1000), "norm.weight": (4093,), "scalar": ()}
# Convolutions, experts in a stack, sizes that no power of two divides, rows of one.
ODD_SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (13, 5, 3), "conv2d.weight": (5, 3, 3, 3), "experts.weight": (3, 7, 11), "odd.weight": (9, 7),
    "column.weight": (5, 1),
}  # fmt: skip
ORACLES = FIRST_ORACLES | MORE_ORACLES | NEW_ORACLES
EXTRA = EXTRA_CASES | MORE_CASES | NEW_CASES
CASES = [(name, extra) for name in METHODS for extra in ({}, *EXTRA.get(name, ()))]


def assert_close(merged: Array, expected: Expected, dtype: str, label: str) -> None:
    """Fails unless `merged` is `expected` rounded once to `dtype`, give or take what float32 arithmetic may add.

    Rounding to the output costs half a unit in its last place. Before it, each of the up to eight float32 operations on
    an element errs by 2^-24 of what it adds up, so by less than 8 * 2^-24 of the terms' absolute sum.
    """
    eps = 2.0**-53 if dtype == "F64" else 2.0**-24
    slack = 8 * eps * expected.terms
    bound = 0.5 * ulp(np.abs(expected.value) + slack, dtype) + slack
    error = np.abs(merged.astype(np.float64) - expected.value)
    wrong = (error > bound) & ~expected.unsure
    assert not wrong.any(), f"{label}: {wrong.sum()} of {wrong.size}, worst {np.max(np.where(wrong, error / bound, 0))}"
    assert expected.unsure.sum() <= 0.002 * expected.unsure.size, f"{label}: too many near ties to mean anything"


def oracle(method: str, case: Case, chosen: dict[str, Any]) -> Expected:
    """What the method and its stages make of the tensor."""
    own = {name: value for name, value in chosen.items() if name not in STAGES}
    return staged(ORACLES[method](case, **own), case, chosen)


def check(
    folder: Path,
    method: str,
    inputs: str,
    output: str,
    has_base: bool,
    extra: dict[str, Any],
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> None:
    spec = spec_of(method)
    given = models(spec, inputs, shapes, has_base=has_base)
    chosen = arguments(spec, input_count(spec), **extra)
    merged = merge_arrays(folder, method, given, chosen, dtype=output, has_base=has_base)
    assert merged.keys() == shapes.keys()
    for name, result in merged.items():
        wide = [model[name].astype(np.float64) for model in given]
        base, arrays = (wide[0], wide[1:]) if has_base else (None, wide)
        expected = oracle(method, Case(arrays, base, derive_key(SEED, name)), chosen)
        assert result.shape == shapes[name]
        assert_close(result, expected, output, f"{method} {extra} {name}")


def test_every_registered_method_has_an_oracle() -> None:
    assert set(METHODS) <= set(ORACLES)


@pytest.mark.parametrize(("method", "extra"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_equals_its_formula(method: str, extra: dict[str, Any], tmp_path: Path) -> None:
    for number, has_base in enumerate(bases(spec_of(method))):
        check(tmp_path / str(number), method, "F32", "F32", has_base, extra)


@pytest.mark.parametrize("method", METHODS)
def test_equals_its_formula_on_other_shapes(method: str, tmp_path: Path) -> None:
    for number, extra in enumerate(({}, *EXTRA.get(method, ()))):
        for has_base in bases(spec_of(method)):
            check(tmp_path / f"{number}{has_base}", method, "F32", "F32", has_base, extra, ODD_SHAPES)


@pytest.mark.parametrize(
    ("inputs", "output"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "BF16"), ("BF16", "F32"), ("F64", "F64")]
)
@pytest.mark.parametrize("method", METHODS)
def test_equals_its_formula_in_other_dtypes(method: str, inputs: str, output: str, tmp_path: Path) -> None:
    for number, has_base in enumerate(bases(spec_of(method))):
        check(tmp_path / str(number), method, inputs, output, has_base, {})


@pytest.mark.parametrize("method", [name for name in METHODS if "lines" in spec_of(name).parameters])
def test_stages_scale_what_a_method_merged(method: str, tmp_path: Path) -> None:
    check(tmp_path / "lines", method, "F32", "F32", True, {"lines": 0.3})
    check(tmp_path / "norm", method, "F32", "F32", True, {"match_norm": True})
    check(tmp_path / "both", method, "F32", "F32", True, {"match_norm": True, "lines": -0.5})


def test_inputs_of_several_dtypes_meet_in_one_merge(tmp_path: Path) -> None:
    spec = spec_of("ties")
    given = [
        models(spec, dtype, SHAPES, has_base=True)[number] for number, dtype in enumerate(["F32", "BF16", "F16", "F32"])
    ]
    chosen = arguments(spec, 3)
    merged = merge_arrays(tmp_path, "ties", given, chosen, dtype="BF16", has_base=True)
    for name, result in merged.items():
        base, *arrays = [model[name].astype(np.float64) for model in given]
        expected = oracle("ties", Case(arrays, base, derive_key(SEED, name)), chosen)
        assert_close(result, expected, "BF16", name)
