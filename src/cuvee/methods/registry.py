"""The one door through which methods come in: Cuvee's own and other people's alike.

A package adds methods by an entry point in the group `cuvee.methods` that names a module; importing it runs the
decorators.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from cuvee.errors import MethodError
from cuvee.methods.spec import Base, MethodSpec, Scope, read_signature
from cuvee.methods.stages import with_stages

F = TypeVar("F", bound=Callable[..., Any])
_HOMES = {
    "linear": "linear",
    "passthrough": "passthrough",
    "slerp": "slerp",
    "nuslerp": "nuslerp",
    "multislerp": "sphere",
    "karcher": "sphere",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare",
    "della": "della",
    "della_linear": "della",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs",
    "sce": "sce",
    "model_stock": "model_stock",
    "nearswap": "nearswap",
    "arcee_fusion": "arcee_fusion",
    "ram": "ram",
    "ramplus_tl": "ram",
    "magmax": "magmax",
    "consensus": "tall",
    "metagpt": "norms",
    "nan": "norms",
    "geometric_median": "geometric_median",
}
"""Cuvee's methods in the order of the documentation, and their modules: a merge loads the one that it needs."""
_specs: dict[str, MethodSpec] = {}
_broken: dict[str, str] = {}  # plug-ins that could not be loaded, and why


def merge_method(
    name: str,
    *,
    base: Base,
    models: tuple[int, int | None],
    scope: Scope = "elements",
    prepare: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    coefficients: Callable[..., tuple[float, ...]] | None = None,
    reference: str | None = None,
    keeps: int = 0,
) -> Callable[[F], F]:
    """Registers the decorated function as the merge method `name` and gives it back unchanged.

    Args:
        name: as recipes say it.
        base: whether a base model is `required`, `optional` (deltas are from zero without one) or `none` (a base, if
            the recipe has one, is an input like any other).
        models: fewest and most inputs (None: any number), the base not counted unless `base` is `none`.
        scope: `elements` if any slicing of the tensor will do, `rows` if rows must stay whole, `matrix` if all of it
            is needed.
        prepare: `prepare(scan, *, some of the method's parameters)`, whose result the method's Prepared argument
            receives.
        coefficients: `coefficients(*, some of the method's parameters)`, for a method that is nothing but the sum of
            its inputs times a number each: these. The engine may then add inputs up before they are formed.
        reference: the paper.
        keeps: bytes an element that `prepare` takes if it keeps scores of tensors of up to `AFFORDABLE` elements, for
            the memory budget.

    Raises:
        MethodError: if the signature cannot be read or the name is taken.

    """

    def register(function: F) -> F:
        spec = read_signature(
            function,
            name=name,
            base=base,
            models=models,
            scope=scope,
            prepare=prepare,
            check=check,
            coefficients=coefficients,
            reference=reference,
            keeps=keeps,
        )
        if name in _HOMES and function.__module__ != _home(name):
            importlib.import_module(_home(name))  # so that a second method of this name is refused below
        known = _specs.get(name)
        if known is not None and known.apply.__module__ != function.__module__:
            raise MethodError(
                f"two merge methods are called {name!r}",
                found=" and ".join(f"{f.__module__} ({f.__code__.co_filename})" for f in (known.apply, function)),
                method=name,
            )
        _specs[name] = with_stages(spec)
        return function

    return register


def get_method(name: str) -> MethodSpec:
    """The method called `name`.

    Raises:
        MethodError: if there is none; it names the nearest.
    """
    if name not in _specs and name in _HOMES:
        importlib.import_module(_home(name))
    if name in _specs:
        return _specs[name]
    _load_own()
    _load_others()
    if name in _specs:
        return _specs[name]
    import difflib

    near = difflib.get_close_matches(name.replace("-", "_").lower(), _specs, n=1)
    raise MethodError(
        f"unknown merge method {name!r}",
        expected=", ".join(sorted(_specs)),
        found="; ".join(f"plug-in {plug} could not be loaded: {why}" for plug, why in _broken.items()) or None,
        fix=f"did you mean {near[0]!r}?" if near else "`cuvee methods` explains each",
        method=name,
    )


def methods_of(module: str) -> tuple[MethodSpec, ...]:
    """The methods that a module registered."""
    return tuple(spec for spec in _specs.values() if spec.apply.__module__ == module)


def method_names() -> tuple[str, ...]:
    """All known methods: Cuvee's in the order of its documentation, then others'."""
    _load_own()
    _load_others()
    return (*_HOMES, *(name for name in _specs if name not in _HOMES))


def _home(name: str) -> str:
    return f"cuvee.methods.{_HOMES[name]}"


@cache
def _load_own() -> None:
    for name in _HOMES:
        importlib.import_module(_home(name))


@cache
def _load_others() -> None:
    from importlib.metadata import entry_points  # looks through every installed package: only where it is needed

    for entry in entry_points(group="cuvee.methods"):
        try:
            entry.load()
        except Exception as error:  # noqa: BLE001 - other people's code may fail in any way; Cuvee's methods still work
            _broken[entry.name] = f"{type(error).__name__}: {error}"
