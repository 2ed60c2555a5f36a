"""Single fields of a recipe read from plain data by type, each refusal with its place; what they mean is not known."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from cuvee.errors import RecipeError
from cuvee.recipe.notes import Notes, nearest, shown
from cuvee.recipe.yaml_marks import Path
from cuvee.tensors.dtypes import code_of
from cuvee.tensors.reference import ModelRef

DTYPES = ("bfloat16", "float16", "float32", "float64", "int64")


def mapping(data: Any, path: Path, notes: Notes, *, what: str, fix: str | None = None) -> Mapping[str, Any]:
    """`data`, which must be a mapping."""
    if isinstance(data, Mapping):
        return data
    if fix is None and isinstance(data, list) and data and all(isinstance(item, Mapping) for item in data):
        fix = "remove the dashes: it is a mapping, not a list"
    raise notes.error(f"{what} must be a mapping of keys to values", path, found=shown(data), fix=fix)


def sequence(data: Any, path: Path, notes: Notes, *, what: str, fix: str | None = None) -> list[Any]:
    """`data`, which must be a list with something in it."""
    if isinstance(data, list) and data:
        return data
    raise notes.error(f"{what} must be a list with at least one entry", path, found=shown(data), fix=fix)


def text(data: Any, path: Path, notes: Notes, *, what: str) -> str | None:
    """`data`, which must be text or nothing."""
    if data is None or (isinstance(data, str) and data.strip()):
        return data
    fix = "quote it" if isinstance(data, (int, float)) else None
    raise notes.error(f"{what} must be text", path, found=shown(data), fix=fix)


def texts(data: Any, path: Path, notes: Notes, *, what: str) -> tuple[str, ...] | None:
    """`data` as a tuple of texts: a list of them, a single one, or nothing."""
    if data is None:
        return None
    items = sequence([data] if isinstance(data, str) else data, path, notes, what=what)
    for index, item in enumerate(items):
        if not isinstance(item, str) or not item:
            raise notes.error(f"{what} must hold texts only", (*path, index), found=shown(item), fix="quote it")
    return tuple(items)


def number(data: Any, path: Path, notes: Notes, *, what: str) -> float | None:
    """`data` as a finite number, or nothing."""
    if data is None:
        return None
    problem = notes.error(f"{what} must be a finite number", path, found=shown(data))
    if isinstance(data, bool) or not isinstance(data, (int, float, str)):
        raise problem
    try:
        value = float(data)
    except (ValueError, OverflowError):
        raise problem from None
    if not math.isfinite(value):
        raise problem
    return value


def dtype(data: Any, path: Path, notes: Notes, *, what: str) -> str | None:
    """The safetensors code of a dtype named as torch does, with or without `torch.`; None for nothing."""
    name = text(data, path, notes, what=what)
    if name is None:
        return None
    code = code_of(name.strip())
    if code in ("F16", "BF16", "F32", "F64", "I64"):
        return code
    if re.match(r"float8|fp8|f8", name.removeprefix("torch.").strip().lower()):
        raise notes.error(
            f"the {what} {shown(name)} is read, not written",
            path,
            expected=", ".join(DTYPES),
            fix="merge into bfloat16; inference engines make float8 of it with scales of their own",
        )
    short = {
        "bf16": "bfloat16",
        "fp16": "float16",
        "f16": "float16",
        "fp32": "float32",
        "f32": "float32",
        "fp64": "float64",
    }
    near = short.get(name.strip().lower()) or nearest(name.removeprefix("torch."), DTYPES)
    raise notes.error(
        f"unknown {what} {shown(name)}",
        path,
        expected=", ".join(DTYPES),
        fix=f"did you mean {near}?" if near else "leave it out to keep the inputs' dtype",
    )


def choice(data: Any, path: Path, notes: Notes, *, what: str, choices: Sequence[str]) -> str | None:
    """One of a few words; None for nothing."""
    name = text(data, path, notes, what=what)
    if name is None or name in choices:
        return name
    near = nearest(name, choices)
    raise notes.error(
        f"unknown {what} {shown(name)}",
        path,
        expected=", ".join(choices),
        fix=f"did you mean {near}?" if near else None,
    )


def layer_range(data: Any, path: Path, notes: Notes) -> tuple[int, int]:
    """A half-open range of layers `[first, after the last]`."""
    if not (
        isinstance(data, list)
        and len(data) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in data)
    ):
        raise notes.error(
            "layer_range must be two whole numbers",
            path,
            expected="[first, after the last], counted from 0, like [0, 16]",
            found=shown(data),
        )
    start, stop = data
    if start < 0 or stop <= start:
        what = "layer_range must not be negative" if min(data) < 0 else "layer_range is empty"
        raise notes.error(
            what,
            path,
            expected="[first, after the last], counted from 0, like [0, 16]",
            found=shown(data),
            fix=f"for layer {start} alone write [{start}, {start + 1}]" if start == stop >= 0 else None,
        )
    return start, stop


def plain_data(value: Any, path: Path = (), depth: int = 0) -> Any:
    """A recipe made in Python as plain data: tuples become lists, paths and references texts.

    Raises:
        RecipeError: for anything that a recipe cannot hold; the fact `inside` is its path.
    """
    if depth > 64:
        raise RecipeError("the recipe nests deeper than 64 levels", inside=path[:4])
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, (*path, str(key)), depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, (*path, index), depth + 1) for index, item in enumerate(value)]
    return _plain_scalar(value, path)


def _plain_scalar(value: Any, path: Path) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (PurePath, ModelRef)):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise RecipeError(
        f"a recipe cannot hold a {type(value).__name__}",
        expected="mappings, lists, texts, numbers, true and false",
        found=shown(value),
        inside=path,
    )
