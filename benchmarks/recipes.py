"""The recipes that are raced: one table, one entry a method. It knows neither of the two tools.

`base`, `a`, `b` and `c` stand for the models of inputs.py. A recipe is written as JSON, which every YAML reader
reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inputs import MODELS, Shape, tensor_shapes


def _models(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": dict(parameters)} if parameters else {"model": name} for name in names]


def _on_base(**per_model: Any) -> dict[str, Any]:
    return {"base_model": "base", "models": _models("a", "b", "c", **per_model)}


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"models": _models("a", "b", "c", weight=0.33)},
    "slerp": {"base_model": "base", "models": _models("base", "a"), "parameters": {"t": 0.5}},
    "task_arithmetic": _on_base(weight=0.3),
    "ties": _on_base(weight=0.3, density=0.5),
    "dare_ties": _on_base(weight=0.3, density=0.5),
    "dare_linear": _on_base(weight=0.3, density=0.5),
    # Stacked by `expected_tensors`' rule: two thirds of each model, overlapping in the middle.
    "passthrough": {"slices": [{"sources": [{"model": "base"}]}, {"sources": [{"model": "a"}]}]},
    "della": _on_base(weight=0.3, density=0.5, epsilon=0.15),
    "della_linear": _on_base(weight=0.3, density=0.5, epsilon=0.15),
    "breadcrumbs": _on_base(weight=0.3, density=0.5, gamma=0.01),
    "breadcrumbs_ties": _on_base(weight=0.3, density=0.5, gamma=0.01),
    "sce": {**_on_base(), "parameters": {"select_topk": 0.5}},
    "karcher": {"models": _models("a", "b", "c")},
    "model_stock": _on_base(),
    "multislerp": {"models": _models("a", "b", "c", weight=0.33)},
    "nuslerp": {"models": _models("a", "b", weight=0.5)},
    "arcee_fusion": {"base_model": "base", "models": _models("base", "a")},
    "nearswap": {"base_model": "base", "models": _models("base", "a"), "parameters": {"t": 0.0005}},
    "ram": {**_on_base(), "parameters": {"epsilon": 0.0005}},
    "ramplus_tl": {**_on_base(), "parameters": {"epsilon": 0.0005, "r": 0.1, "alpha": 0.2}},
}
MERGEKIT_SECONDS = {
    "linear": 18.1, "slerp": 24.4, "task_arithmetic": 16.3, "ties": 176.0, "dare_ties": 72.0, "dare_linear": 55.0,
    "passthrough": 18.5, "della": 243.0, "breadcrumbs": 166.0, "sce": 175.0, "karcher": 51.0, "model_stock": 34.0,
    "multislerp": 38.0, "nuslerp": 37.0, "arcee_fusion": 79.5,
}  # fmt: skip
"""What mergekit 0.1.5 took for these recipes at full size, on a quiet virtual machine of two cores."""
AIMS = {
    "linear": 12, "slerp": 10, "task_arithmetic": 8, "ties": 25, "dare_ties": 15, "dare_linear": 12, "passthrough": 10,
    "della": 25, "breadcrumbs": 25, "sce": 25, "karcher": 20, "model_stock": 15, "multislerp": 15, "nuslerp": 18,
    "arcee_fusion": 14,
}  # fmt: skip
"""How many times faster Cuvee should be than that."""
FOUNDATION = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "dare_linear", "passthrough")
RANDOM = frozenset({"dare_ties", "dare_linear", "della", "della_linear"})
"""Methods whose masks differ between tools by design, so that outputs cannot be compared value by value."""


def write_recipe(method: str, models: Path, shape: Shape, file: Path) -> None:
    """Writes the method's recipe over the models under `models`."""
    recipe = {"merge_method": method, **RECIPES[method], "dtype": "bfloat16"}
    if method == "passthrough":
        recipe["slices"] = [
            {"sources": [{**source, "layer_range": layers} for source in part["sources"]]}
            for part, layers in zip(recipe["slices"], _stack(shape), strict=True)
        ]
    file.write_text(json.dumps(_with_paths(recipe, models), indent=2) + "\n")


def models_used(method: str) -> tuple[str, ...]:
    """The models that the method's recipe reads."""
    text = json.dumps(RECIPES[method])
    return tuple(model for model in MODELS if f'"{model}"' in text)


def expected_tensors(method: str, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors that the method's output must have."""
    layers = sum(stop - start for start, stop in _stack(shape)) if method == "passthrough" else shape.layers
    return tensor_shapes(shape, layers)


def _stack(shape: Shape) -> list[tuple[int, int]]:
    third = shape.layers // 3
    return [(0, shape.layers - third), (third, shape.layers)]


def _with_paths(value: Any, models: Path) -> Any:
    if isinstance(value, dict):
        named = ("model", "base_model")
        return {
            key: str(models / item) if key in named and isinstance(item, str) else _with_paths(item, models)
            for key, item in value.items()
        }
    return [_with_paths(item, models) for item in value] if isinstance(value, list) else value
