"""Recipes for merging adapters: those for models, with adapters where models stand, and a space and a rank.

`merge_method` is `concat` (the exact weighted sum), `svd` (its best approximation of a rank) or any method that acts on
changes. Everything but those two names, `space` and `rank` is checked by the ordinary recipe language. `base_model` may
name what the adapters go on: tensors that they hold whole are merged as changes from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cuvee.errors import PlanError, RecipeError
from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec
from cuvee.recipe.load import load_recipe
from cuvee.recipe.notes import Notes
from cuvee.recipe.references import read_reference
from cuvee.recipe.schema import Recipe, inputs_of
from cuvee.recipe.values import resolve_parameters
from cuvee.recipe.yaml_marks import Marks, load_yaml
from cuvee.tensors.reference import ModelRef

SPACES = ("core", "knots", "factors")
_SUMS = ("concat", "svd")
_OF_MODELS = ("tokenizer", "tokenizer_source", "chat_template")  # keys that need models
_NO_BASE = "no-base"  # stands in for the base model that methods of changes want, where the recipe names none


@dataclass(frozen=True)
class AdapterRecipe:
    """A merge of adapters, validated.

    Attributes:
        method: `concat`, `svd`, or a merge method's name.
        space: where the method acts: `core`, `knots` or `factors`.
        rank: of the result; None keeps all that there is.
        adapters: what is merged, in order.
        base: the model that they go on, if the recipe names it.
        text: the recipe as written.
        warnings: what the user should know.
        recipe: as the recipe language sees it.

    """

    method: str
    space: str
    rank: int | None
    adapters: tuple[ModelRef, ...]
    base: ModelRef | None
    text: str
    warnings: tuple[str, ...]
    recipe: Recipe

    @property
    def is_sum(self) -> bool:
        """Whether the result is the plain weighted sum."""
        return self.method in _SUMS

    @property
    def spec(self) -> MethodSpec:
        """The method that the recipe language knows it by."""
        return get_method(self.recipe.method)

    def parameters(self, name: str, t: float, depth: float | None = None) -> dict[str, Any]:
        """The method's parameters for one module or tensor, per-adapter ones in the order of `adapters`.

        Args:
            name: the module's or tensor's.
            t: position of its layer, 0 to 1.
            depth: the same, but 1 after the layers; what parameters marked `by_depth` go by.

        Raises:
            PlanError: if the method would look at the whole model, or refuses its parameters.

        """
        only, spec = self.recipe.modules[0], self.spec
        found = resolve_parameters(self.recipe, only, only.slices[0], spec, t=t, tensor=name, depth=depth)
        if spec.over is not None and found[spec.over] == "model":
            raise PlanError(
                f"{spec.over} of {self.method} is model, and adapters are merged one module at a time",
                expected="a method that looks at one tensor by itself",
                fix=f"set {spec.over}: tensor, or merge base+adapter models with `cuvee merge`",
            )
        if spec.check is not None:
            spec.check(**{argument: found[argument] for argument in spec.check_arguments})
        return found


def read_adapter_recipe(source: str | Path | Mapping[str, Any]) -> AdapterRecipe:
    """The recipe that `source` (a path, YAML text or a mapping) holds.

    Raises:
        CuveeError: if it cannot be read, or does not say how to merge adapters.

    """
    data, text, marks = _read(source)
    file = marks.file
    name = data.get("merge_method")
    if not isinstance(name, str):
        raise RecipeError("the recipe names no merge_method", expected=f"concat, svd or one of {_usable()}", where=file)
    parameters = dict(data.get("parameters") or {}) if isinstance(data.get("parameters") or {}, Mapping) else {}
    space = _space(parameters.pop("space", None), file)
    rank = _rank(parameters.pop("rank", None), file)
    if name == "svd" and rank is None:
        fix = "add `parameters: {rank: 16}`"
        raise RecipeError("svd cuts the sum to a rank, and none is given", where=file, fix=fix)
    if name == "concat" and rank is not None:
        raise RecipeError("concat keeps every rank", where=file, fix="use merge_method: svd to cut to a rank")
    if data.get("slices") or data.get("modules"):
        raise RecipeError("adapters cannot be sliced", expected="models: a list of adapters", where=file)
    plain = {**data, "merge_method": "task_arithmetic" if name in _SUMS else name, "parameters": parameters}
    if "weight" not in parameters and name in _SUMS:
        parameters["weight"] = 1.0
    _check_method(plain["merge_method"], file)
    base = _base(plain.pop("base_model", None), marks)
    if get_method(plain["merge_method"]).base == "required":
        plain["base_model"] = data.get("base_model") or _NO_BASE
    recipe, warnings = load_recipe(plain)
    adapters = tuple(
        source.model for source in inputs_of(recipe, recipe.modules[0].slices[0], get_method(recipe.method))
    )
    if bad := next((ref for ref in adapters if ref.adapters), None):
        raise PlanError(f"{bad} names a model with an adapter on it", fix=f"name the adapter alone: {bad.adapters[0]}")
    told = [
        f"{file}: {key} has no effect where adapters are merged with each other" for key in _OF_MODELS if data.get(key)
    ]
    shown = text or yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return AdapterRecipe(name, space, rank, adapters, base, shown, (*warnings, *told), recipe)


def _base(value: Any, marks: Marks) -> ModelRef | None:
    """The model that `base_model` names."""
    return None if value is None else read_reference(value, ("base_model",), Notes(marks))[0]


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str, Marks]:
    """The recipe as plain data, its text, and the places of its values."""
    if isinstance(source, Mapping):
        return dict(source), "", Marks("recipe")
    if isinstance(source, str) and ("\n" in source or ": " in source):
        text, file = source, "recipe"
    else:
        file = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {file}", found=str(error), expected="a YAML file") from None
    data, marks = load_yaml(text, file)
    if not isinstance(data, Mapping):
        raise RecipeError("a recipe must be a mapping", where=file, fix="start with `merge_method: NAME`")
    return dict(data), text, marks


def _space(value: Any, file: str) -> str:
    if value is None:
        return "core"
    if value not in SPACES:
        raise RecipeError(f"unknown space {value!r}", expected=", ".join(SPACES), where=f"{file}: parameters.space")
    return str(value)


def _rank(value: Any, file: str) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise RecipeError(
            "rank must be a whole number of 1 or more", found=repr(value), where=f"{file}: parameters.rank"
        )
    return value


def _usable() -> str:
    return ", ".join(name for name in method_names() if _acts_on_changes(get_method(name)))


def _acts_on_changes(spec: MethodSpec) -> bool:
    return spec.wants == "deltas" or spec.name == "linear"


def _check_method(name: str, file: str) -> None:
    if name in method_names() and not _acts_on_changes(get_method(name)):
        raise PlanError(
            f"{name} acts on weights, and an adapter holds a change of weights",
            expected=f"concat, svd or one of {_usable()}",
            where=file,
            fix="or merge base+adapter models with `cuvee merge`, and extract an adapter from the result",
        )
