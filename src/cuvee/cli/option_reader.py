"""Turns an options dataclass into command-line options: each is told once, in `cuvee.options`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, TypeVar

import click

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def options_of(cls: type[Any]) -> Callable[[F], F]:
    """A decorator that adds one option for each field of the dataclass `cls`."""

    def decorate(command: F) -> F:
        for item in reversed(fields(cls)):
            command = _option(item)(command)
        return command

    return decorate


def build(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass made of the values that its own options took from `values`."""
    return cls(**{item.name: values.pop(item.name) for item in fields(cls)})  # type: ignore[arg-type]


def _option(item: Field[Any]) -> Callable[[F], F]:
    name = "--" + item.name.replace("_", "-")
    meta = item.metadata
    common: dict[str, Any] = {"help": meta["help"], "default": item.default, "hidden": meta["legacy"]}
    if isinstance(item.default, bool):
        return click.option(f"{name}/--no-{name[2:]}", *meta["flags"], item.name, **common)
    kind = type(item.default) if isinstance(item.default, (int, float)) else str
    shown = item.default not in (None, 0, ())
    common["multiple"] = isinstance(item.default, tuple)
    return click.option(
        name, *meta["flags"], item.name, type=kind, metavar=meta["metavar"], show_default=shown, **common
    )
