"""Odd tensors through every method: tiny, empty, overflowing, not finite. What cannot be right is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.errors import CheckpointError
from cuvee.numerics.random import derive_key
from methods.cases import METHODS, arguments, bases, input_count, models, spec_of
from methods.oracles import Case
from methods.test_oracles import assert_close, oracle
from support.checkpoints import Array
from support.merging import SEED, merge_arrays

BOTH = [(method, has_base) for method in METHODS for has_base in bases(spec_of(method))]
SHAPES: dict[str, tuple[int, ...]] = {
    "one": (1,), "square": (1, 1), "scalar": (), "none": (0,), "hollow": (3, 0), "flat": (0, 3), "column": (5, 1),
    "cube": (2, 3, 4),
}  # fmt: skip


@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_tensors_of_odd_shapes(method: str, has_base: bool, tmp_path: Path) -> None:
    spec = spec_of(method)
    given = models(spec, "F32", SHAPES, has_base=has_base)
    chosen = arguments(spec, input_count(spec))
    merged = merge_arrays(tmp_path, method, given, chosen, dtype="F32", has_base=has_base)
    assert {name: array.shape for name, array in merged.items()} == SHAPES
    for name, array in merged.items():
        if array.size:
            wide = [model[name].astype(np.float64) for model in given]
            case = Case(wide[has_base:], wide[0] if has_base else None, derive_key(SEED, name))
            assert_close(array, oracle(method, case, chosen), "F32", name)


@pytest.mark.parametrize("block_elements", [7, 14, 28, 1 << 16])
def test_nuslerp_along_the_first_of_three_dimensions(block_elements: int, tmp_path: Path) -> None:
    spec = spec_of("nuslerp")
    given = models(spec, "F32", {"cube": (5, 3, 7)}, has_base=False)
    chosen = arguments(spec, 2, nuslerp_flatten=False, nuslerp_row_wise=True)
    merged = merge_arrays(
        tmp_path, "nuslerp", given, chosen, dtype="F32", has_base=False, block_elements=block_elements
    )["cube"]
    case = Case([model["cube"].astype(np.float64) for model in given], None, derive_key(SEED, "cube"))
    assert_close(merged, oracle("nuslerp", case, chosen), "F32", "cube")


def damaged(method: str, has_base: bool, model: int, value: float) -> tuple[list[dict[str, Array]], dict[str, Any]]:
    spec = spec_of(method)
    given = models(spec, "F32", {"whole": (40, 40), "damaged": (40, 40)}, has_base=has_base)
    given[model]["damaged"][3, 5] = value
    given[model]["damaged"][7, 9] = value
    return given, arguments(spec, input_count(spec))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_values_that_are_not_finite_are_refused_by_name(
    method: str, has_base: bool, value: float, tmp_path: Path
) -> None:
    last = input_count(spec_of(method)) + has_base - 1
    for model in {0, last}:
        given, chosen = damaged(method, has_base, model, value)
        with pytest.raises(CheckpointError, match="not finite") as caught:
            merge_arrays(tmp_path / str(model), method, given, chosen, dtype="F32", has_base=has_base)
        assert caught.value.tensor == "damaged"
        assert caught.value.checkpoint == f"model{model}"
        assert str(3 * 40 + 5) in (caught.value.found or ""), "the first bad element is named"


@pytest.mark.parametrize(("method", "has_base"), BOTH)
def test_values_that_are_not_finite_pass_where_allowed(method: str, has_base: bool, tmp_path: Path) -> None:
    given, chosen = damaged(method, has_base, 0, np.nan)
    merged = merge_arrays(tmp_path, method, given, chosen, dtype="F32", has_base=has_base, allow_nonfinite=True)
    assert np.isfinite(merged["whole"]).all()
    assert np.isnan(merged["damaged"][[3, 7], [5, 9]]).all()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "passthrough"])
def test_damage_stays_where_it_is(method: str, tmp_path: Path) -> None:
    spec = spec_of(method)
    has_base = spec.base == "required"
    given, chosen = damaged(method, has_base, has_base, np.inf)
    chosen |= {"scale": (2.0,)} if method == "passthrough" else {}
    merged = merge_arrays(tmp_path, method, given, chosen, dtype="F32", has_base=has_base, allow_nonfinite=True)
    assert (~np.isfinite(merged["damaged"])).sum() == 2


def test_results_too_large_for_the_output_are_refused_by_name(tmp_path: Path) -> None:
    given = [{"fine": np.ones(6, np.float32), "huge": np.full(6, 40000.0, np.float32)}] * 2
    chosen = {"weight": (1.0, 1.0), "normalize": False}
    with pytest.raises(CheckpointError, match="does not fit F16") as caught:
        merge_arrays(tmp_path / "refused", "linear", given, chosen, dtype="F16", has_base=False)
    assert caught.value.tensor == "huge"
    assert "80000" in (caught.value.found or "")
    merged = merge_arrays(
        tmp_path / "allowed", "linear", given, chosen, dtype="F16", has_base=False, allow_nonfinite=True
    )
    np.testing.assert_array_equal(merged["huge"], np.full(6, np.inf))
    np.testing.assert_array_equal(merged["fine"], np.full(6, 2.0))
    # bfloat16 has the range
    merged = merge_arrays(tmp_path / "wider", "linear", given, chosen, dtype="BF16", has_base=False)
    np.testing.assert_array_equal(merged["huge"].astype(float), np.full(6, 79872.0))  # the nearest of 8 binary digits


def test_results_that_overflow_float32_on_the_way_are_refused_by_name(tmp_path: Path) -> None:
    given = [{"w": np.array([1.0, 3e38, -2.0], np.float32)}] * 2
    with pytest.raises(CheckpointError, match="does not fit F32"):
        merge_arrays(tmp_path, "linear", given, {"weight": (1.0, 1.0), "normalize": False}, dtype="F32", has_base=False)


@pytest.mark.parametrize("allowed", [False, True])
def test_sums_that_overflow_float32_only_on_the_way_are_the_same_with_and_without_allowance(
    allowed: bool, tmp_path: Path
) -> None:
    """A merge that was stopped by another tensor goes on with --allow-nonfinite, and must not change what was done."""
    given = [{"w": np.array([1.0, value, -2.0], np.float32)} for value in (3e38, 3e38, -3e38)]
    chosen = {"weight": (1.0, 1.0, 1.0), "normalize": False}
    merged = merge_arrays(tmp_path, "linear", given, chosen, dtype="F32", has_base=False, allow_nonfinite=allowed)
    np.testing.assert_array_equal(merged["w"], np.array([3.0, 3e38, -6.0], np.float32))


def test_float64_inputs_are_merged_in_float64(tmp_path: Path) -> None:
    tiny = 2.0**-40
    given = [{"w": np.array([1.0, 1.0, 1.0])}, {"w": np.array([1.0 + tiny, 1.0 - tiny, 1.0])}]
    chosen = arguments(spec_of("task_arithmetic"), 1, weight=0.5, lively=False)
    merged = merge_arrays(tmp_path, "task_arithmetic", given, chosen, dtype="F64", has_base=True)["w"]
    np.testing.assert_array_equal(merged, [1.0 + tiny / 2, 1.0 - tiny / 2, 1.0])
