from __future__ import annotations

import itertools

import numpy as np
import pytest

from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import CODES, code_of, is_float, is_quantised, itemsize, name_of, numpy_dtype, promote
from support.checkpoints import DTYPES

FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")


def test_every_code_has_its_numpy_dtype_and_size() -> None:
    assert set(DTYPES) == CODES
    for code, dtype in DTYPES.items():
        assert numpy_dtype(code) == dtype
        assert itemsize(code) == dtype.itemsize
        assert is_float(code) == (code in (*FLOATS, "F8_E8M0"))
        assert is_quantised(code) == code.startswith("F8")


def test_names_go_there_and_back() -> None:
    for code in CODES:
        assert code_of(name_of(code)) == code
        assert code_of("torch." + name_of(code)) == code


@pytest.mark.parametrize(
    ("name", "code"),
    [("half", "F16"), ("torch.float", "F32"), ("double", "F64"), ("long", "I64"), ("bf16", None), ("", None),
     ("F32", None)],
)  # fmt: skip
def test_other_names(name: str, code: str | None) -> None:
    assert code_of(name) == code


def all_values(code: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Every finite number of a format of one or two bytes."""
    bits = np.arange(1 << 8 * itemsize(code), dtype=np.uint8 if itemsize(code) == 1 else np.uint16)
    with np.errstate(invalid="ignore"):  # some bit patterns are signalling NaNs
        values = bits.view(DTYPES[code]).astype(np.float64)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("codes", list(itertools.product(("F8_E4M3", "F8_E5M2", "F16", "BF16"), repeat=2)))
def test_the_promoted_dtype_holds_every_value_of_each(codes: tuple[str, str]) -> None:
    common = promote(codes)
    for code in codes:
        values = all_values(code)
        np.testing.assert_array_equal(values.astype(DTYPES[common]).astype(np.float64), values)


def test_promotion_is_the_widest() -> None:
    assert promote(("F32", "BF16", "F32")) == "F32"
    assert promote(("BF16", "F64", "F16")) == "F64"
    assert promote(("F16", "BF16")) == "F32"
    assert promote(("BF16", "BF16")) == "BF16"
    assert promote(("I64", "I64")) == "I64"
    assert promote(("BOOL",)) == "BOOL"
    for codes in itertools.permutations(("F16", "BF16", "F8_E5M2")):
        assert promote(codes) == "F32"


@pytest.mark.parametrize("codes", [("I64", "I32"), ("F32", "I64"), ("BOOL", "U8")])
def test_other_dtypes_must_agree(codes: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError, match="non-float") as caught:
        promote(codes)
    assert caught.value.found == ", ".join(sorted(codes))
