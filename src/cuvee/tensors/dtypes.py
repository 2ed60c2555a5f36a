"""The dtypes a checkpoint stores, under their safetensors codes; knows no files and no arithmetic."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from cuvee.errors import CheckpointError

# Codes as the safetensors format spells them -> (NumPy or ml_dtypes name, bytes an element, the recipe's name).
_TABLE: dict[str, tuple[str, int, str]] = {
    "F64": ("float64", 8, "float64"),
    "F32": ("float32", 4, "float32"),
    "F16": ("float16", 2, "float16"),
    "BF16": ("bfloat16", 2, "bfloat16"),
    "F8_E4M3": ("float8_e4m3fn", 1, "float8_e4m3fn"),
    "F8_E5M2": ("float8_e5m2", 1, "float8_e5m2"),
    "F8_E8M0": ("float8_e8m0fnu", 1, "float8_e8m0fnu"),  # powers of two: scales, never values
    "I64": ("int64", 8, "int64"),
    "I32": ("int32", 4, "int32"),
    "I16": ("int16", 2, "int16"),
    "I8": ("int8", 1, "int8"),
    "U64": ("uint64", 8, "uint64"),
    "U32": ("uint32", 4, "uint32"),
    "U16": ("uint16", 2, "uint16"),
    "U8": ("uint8", 1, "uint8"),
    "BOOL": ("bool", 1, "bool"),
}
CODES = frozenset(_TABLE)
# A wider float holds every value of the ones before it, except that F16 and BF16 only meet in F32.
_FLOAT_WIDTH = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 3, "F64": 4}


def itemsize(code: str) -> int:
    """Bytes of one element of dtype `code`."""
    return _TABLE[code][1]


def is_float(code: str) -> bool:
    """Whether dtype `code` takes part in arithmetic; other tensors must agree and are copied."""
    return code in _FLOAT_WIDTH


def is_quantised(code: str) -> bool:
    """Whether `code` is a float8: meaningful only together with its scales."""
    return _FLOAT_WIDTH.get(code) == 1


@cache
def numpy_dtype(code: str) -> np.dtype[Any]:
    """The NumPy dtype (from ml_dtypes where NumPy has none) of a safetensors code."""
    name = _TABLE[code][0]
    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def narrow(values: np.ndarray[Any, Any], code: str) -> np.ndarray[Any, Any]:
    """The values rounded to dtype `code`, to nearest even; the array itself if it has that dtype already."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told by the output check
        return values.astype(numpy_dtype(code), copy=False)


def code_of(name: str) -> str | None:
    """The code of a dtype named as recipes and torch do (`bfloat16`, `torch.float32`); None if unknown."""
    plain = name.removeprefix("torch.")
    plain = {"half": "float16", "float": "float32", "double": "float64", "long": "int64"}.get(plain, plain)
    return next((code for code, row in _TABLE.items() if row[2] == plain), None)


def name_of(code: str) -> str:
    """The name that recipes, configs and torch use for a safetensors code."""
    return _TABLE[code][2]


def promote(codes: tuple[str, ...]) -> str:
    """The narrowest float dtype that holds every value of all `codes` (F16 with BF16 gives F32).

    Raises:
        CheckpointError: if integer or boolean dtypes differ among themselves or meet floats.

    """
    kinds = set(codes)
    if len(kinds) == 1:
        return codes[0]
    if not all(map(is_float, kinds)):
        raise CheckpointError(
            "tensors of different, non-float dtypes cannot be merged",
            expected="one dtype",
            found=", ".join(sorted(kinds)),
        )
    width = max(_FLOAT_WIDTH[kind] for kind in kinds)
    widest = [kind for kind in kinds if _FLOAT_WIDTH[kind] == width]
    if len(widest) == 1:
        return widest[0]
    return "F32" if width == 2 else "BF16"
