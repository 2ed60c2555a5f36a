"""The language of parameter values: a scalar, a gradient over the layers, or filters that choose one by tensor name.

Parsing turns plain data into one of four small expressions, each with `at(t, tensor)`. Pure functions; which parameter
a value belongs to matters only for its type, and where it stands in a file is added by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import RecipeError
from cuvee.methods.spec import Parameter
from cuvee.recipe.notes import shown

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NUMBER_STARTS = frozenset("+-.0123456789")
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
FILTER_KEYS = ("filter", "value")


@dataclass(frozen=True, slots=True)
class Constant:
    """The same everywhere."""

    value: Any

    def at(self, t: float, tensor: str) -> Any:  # noqa: ARG002
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Gradient:
    """Numbers at equal distances over the layers, straight lines between them."""

    values: tuple[float, ...]
    kind: type

    def at(self, t: float, tensor: str) -> Any:  # noqa: ARG002
        """The value at layer position `t` in [0, 1]."""
        # This runs for every tensor and model of a merge, hence no call that can be avoided.
        position = t * (len(self.values) - 1)
        left = int(position) if t < 1.0 else len(self.values) - 2
        share = position - left
        value = (1.0 - share) * self.values[left] + share * self.values[left + 1]
        if self.kind is float:
            return value
        return round(value) if self.kind is int else self.kind(value)


@dataclass(frozen=True, slots=True)
class Steps:
    """Values that cannot be interpolated: `values[int(t * (n - 1))]`."""

    values: tuple[Any, ...]

    def at(self, t: float, tensor: str) -> Any:  # noqa: ARG002
        """The value at layer position `t` in [0, 1]."""
        return self.values[int(t * (len(self.values) - 1))]


@dataclass(frozen=True, slots=True)
class Filters:
    """The first entry whose filter is None or part of the tensor's name."""

    entries: tuple[tuple[str | None, Constant | Gradient | Steps], ...]

    def at(self, t: float, tensor: str) -> Any:
        """The entry's value at `t`; None if no filter matches."""
        for part, value in self.entries:
            if part is None or part in tensor:
                return value.at(t, tensor)
        return None

    @property
    def exhaustive(self) -> bool:
        """Whether every tensor matches."""
        return any(part is None for part, _ in self.entries)


Plain = Constant | Gradient | Steps
Value = Plain | Filters


def parse_value(data: Any, parameter: Parameter | None = None) -> Value:
    """The expression that `data` spells, its scalars of the parameter's type.

    Args:
        data: plain data as written.
        parameter: what it is for; None: any numbers, booleans or texts will do.

    Raises:
        RecipeError: if it is none of the four forms, or a scalar is not what the parameter takes; the fact `inside` is
        the path
            to it from `data`.
    """
    if isinstance(data, Mapping):
        return Filters((_filter_entry(data, parameter, ()),))
    if isinstance(data, list) and any(isinstance(entry, Mapping) for entry in data):
        return Filters(tuple(_filter_entry(entry, parameter, (index,)) for index, entry in enumerate(data)))
    return _parse_plain(data, parameter, ())


def scalars(value: Value) -> Iterator[Any]:
    """Every scalar that an expression was written with."""
    if isinstance(value, Filters):
        for _, each in value.entries:
            yield from scalars(each)
    elif isinstance(value, Constant):
        yield value.value
    else:
        yield from value.values


def _filter_entry(entry: Any, parameter: Parameter | None, inside: tuple[Any, ...]) -> tuple[str | None, Plain]:
    if not isinstance(entry, Mapping):
        raise RecipeError(
            f"{shown(entry)} stands among filters without being one",
            expected="entries of the form {filter: PART OF A NAME, value: VALUE}",
            fix=f"for all other tensors write `- value: {shown(entry)}` as the last entry",
            inside=inside,
        )
    if entry.get("value") is None:
        raise RecipeError(
            "a filter has no value",
            expected="{filter: PART OF A NAME, value: VALUE}",
            found=shown(dict(entry)),
            inside=inside,
        )
    part = entry.get("filter")
    if part is not None and not isinstance(part, str):
        raise RecipeError(
            "a filter must be text",
            expected="a part of a tensor's name, like mlp or self_attn",
            found=shown(part),
            fix="quote it" if not isinstance(part, (list, dict)) else "write one entry for each filter",
            inside=(*inside, "filter"),
        )
    return (None if part == "*" else part), _parse_plain(entry["value"], parameter, (*inside, "value"))


def _parse_plain(data: Any, parameter: Parameter | None, inside: tuple[Any, ...]) -> Plain:
    if not isinstance(data, list):
        return Constant(_scalar(data, parameter, inside))
    if not data:
        raise RecipeError("a gradient needs at least one value", found="an empty list", inside=inside)
    values = tuple(_scalar(value, parameter, (*inside, index)) for index, value in enumerate(data))
    kind = float if parameter is None else parameter.kind
    if len(values) == 1:
        return Constant(values[0])
    # Flags written 0 and 1 are interpolated and any non-zero result is true; written true and false they are steps.
    numeric = all(map(_is_number, data if kind is bool else values))
    return Gradient(tuple(map(float, values)), kind) if numeric and kind is not str else Steps(values)


def _scalar(data: Any, parameter: Parameter | None, inside: tuple[Any, ...]) -> Any:
    """`data` as the parameter's type."""
    number = _number(data)
    if isinstance(number, float) and not math.isfinite(number):
        raise RecipeError(f"{shown(data)} is not a finite number", inside=inside)
    if parameter and isinstance(data, str) and data in parameter.words:
        return data
    kind = parameter.kind if parameter else None
    value: Any = None
    if kind is None:
        value = number if number is not None else data if isinstance(data, (bool, str)) else None
    elif kind is float:
        value = None if number is None else float(number)
    elif kind is int:
        value = int(number) if number is not None and number == int(number) else None
    elif kind is bool:
        value = _flag(data)
    elif isinstance(data, str):
        value = data
    if value is None:
        raise _wrong_type(data, parameter, inside)
    if parameter and parameter.choices and value not in parameter.choices:
        choices = ", ".join(map(str, parameter.choices))
        raise RecipeError(f"{parameter.name} cannot be {shown(data)}", expected=f"one of {choices}", inside=inside)
    return value


def _wrong_type(data: Any, parameter: Parameter | None, inside: tuple[Any, ...]) -> RecipeError:
    name = parameter.name if parameter else "a parameter"
    expected = _KINDS[parameter.kind] if parameter else "a number, true, false or text"
    if parameter and parameter.words:
        expected = f"{expected} or {' or '.join(parameter.words)}"
    if isinstance(data, Mapping):
        fix = "filters choose whole values: write `- filter: ...` entries directly under the parameter"
    elif isinstance(data, list):
        fix = "a gradient is one flat list of values"
    else:
        fix = None
    return RecipeError(
        f"{name} must be {expected}",
        expected=f"{expected}, a list of them over the layers, or a list of {{filter, value}}" if not fix else expected,
        found=shown(data),
        fix=fix,
        inside=inside,
    )


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


def _number(data: Any) -> int | float | None:
    """A number, also from text: YAML 1.1 takes `1e-5` for text."""
    if isinstance(data, str):
        # float() would also take "1_000", "nan" and "inf", which no recipe means.
        if data.strip()[:1] not in _NUMBER_STARTS or "_" in data or len(data) > 100:
            return None
        try:
            return float(data)
        except ValueError:
            return None
    if not _is_number(data):
        return None
    # Larger whole numbers have no float.
    return float("inf") if isinstance(data, int) and abs(data) > 1 << 1000 else data


def _flag(data: Any) -> bool | None:
    if isinstance(data, bool):
        return data
    if _is_number(data) and data in (0, 1):
        return bool(data)
    spelling = data.lower() if isinstance(data, str) else None
    return True if spelling in _TRUE else False if spelling in _FALSE else None
