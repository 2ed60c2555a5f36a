"""Inputs and arguments for any registered method, read off its spec: a method that comes later is covered unasked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec
from support.checkpoints import DTYPES, Array

METHODS = tuple(sorted(method_names()))
# What a required parameter gets; and what makes a method do more than its default would.
REQUIRED = {"weight": (0.3, 0.7, 0.45, -0.2, 0.9), "t": 0.4}
LIVELY: dict[str, Any] = {"density": (0.4, 0.65, 0.3, 0.5, 0.7), "select_topk": 0.5, "lambda": 0.8}
LIVELY["threshold"] = (0.3713, 0.4191, 0.2897, 0.4513, 0.5171)  # of which no short fraction is a tie


def spec_of(method: str) -> MethodSpec:
    """The method's spec."""
    return get_method(method)


def input_count(spec: MethodSpec, wanted: int = 3) -> int:
    """Inputs beside the base: `wanted`, or as many as the method takes."""
    return max(spec.min_models, min(wanted, spec.max_models or wanted))


def bases(spec: MethodSpec) -> tuple[bool, ...]:
    """With and without a base, as the method allows."""
    return {"required": (True,), "none": (False,), "optional": (False, True)}[spec.base]


def arguments(spec: MethodSpec, count: int, *, lively: bool = True, **fixed: Any) -> dict[str, Any]:
    """The method's arguments for `count` inputs; `fixed` ones (by recipe name) as given."""
    found: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if name in fixed:
            value = fixed[name]
        elif parameter.argument == spec.over:
            value = "tensor"  # what the oracles compute; test_model_scope.py has the other
        elif lively and name in LIVELY:
            value = LIVELY[name]
        elif parameter.required:
            value = REQUIRED.get(name, parameter.choices[0] if parameter.choices else parameter.kind(1))
        else:
            value = parameter.default
        if parameter.per_model:
            value = tuple(value[:count]) if isinstance(value, tuple | list) else (value,) * count
        elif isinstance(value, tuple | list):
            value = value[0]
        found[parameter.argument] = value
    return found


def models(
    spec: MethodSpec,
    dtype: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    has_base: bool,
    seed: int = 0,
    wanted: int = 3,
) -> list[dict[str, Array]]:
    """Fine-tunes of one random model (itself first if `has_base`), in `dtype`.

    All values are multiples of 2^-18 below 4, so that differences are exact in float32 and magnitudes rank alike there
    and in float64.
    """
    rng = np.random.default_rng(seed)
    grid = 2.0**-18
    origin = {name: np.clip(rng.normal(0, 0.6, shape), -1.9, 1.9) for name, shape in shapes.items()}

    def moved(name: str, scale: float) -> Array:
        values = origin[name] + np.clip(rng.normal(0, scale, origin[name].shape), -2, 2)
        rounded = np.asarray(np.round(values / grid) * grid).astype(DTYPES[dtype])
        # narrow formats have finer steps near zero than the grid: put those back on it
        return np.asarray(np.round(rounded.astype(np.float64) / grid) * grid).astype(DTYPES[dtype])

    count = input_count(spec, wanted)
    base = [{name: moved(name, 0.0) for name in shapes}] if has_base else []
    return base + [{name: moved(name, 0.3) for name in shapes} for _ in range(count)]
