"""A recipe as data: what the user asked for, validated and frozen, with the place of everything in the file.

Values of parameters stay as they were written (gradients, filters); `values` evaluates them. Which tensors a checkpoint
has, and whether layers exist, is not known here. Objects compare by identity, so that they can key caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.methods.spec import MethodSpec
from cuvee.recipe.yaml_marks import Marks, Path
from cuvee.tensors.reference import ModelRef

Parameters = Mapping[str, Any]
"""By recipe name; values in plain data as written, checked against the method's parameters."""


@dataclass(frozen=True, eq=False)
class SourceRecipe:
    """One model of a slice. `layer_range` is half open; None means all layers and everything around them."""

    model: ModelRef
    layer_range: tuple[int, int] | None
    parameters: Parameters
    path: Path
    """Where it stands in the file; `("base_model",)` if it is there because it is the base."""


@dataclass(frozen=True, eq=False)
class SliceRecipe:
    """Models merged layer by layer into the next layers of the output."""

    sources: tuple[SourceRecipe, ...]
    base_model: ModelRef | None
    """The slice's own base, which stands before the recipe's."""
    parameters: Parameters
    residual_weight: float | None
    path: Path


@dataclass(frozen=True, eq=False)
class ModuleRecipe:
    """One stack of a model: `default` unless the recipe names several."""

    name: str
    slices: tuple[SliceRecipe, ...]
    parameters: Parameters
    path: Path


@dataclass(frozen=True, eq=False)
class Recipe:
    """A merge, validated as far as it can be without looking at a checkpoint."""

    method: str
    base_model: ModelRef | None
    modules: tuple[ModuleRecipe, ...]
    dtype: str | None
    """The safetensors code (`BF16`) of the dtype to read and, without `out_dtype`, to write."""
    out_dtype: str | None
    parameters: Parameters
    only: tuple[str, ...] | None
    """Filters; tensors that match none are the base's, bit for bit. None: everything is merged."""
    missing: str | None
    """What happens to tensors that only some models have: `error`, `base` or `skip`; None leaves it to the options."""
    tokenizer: Mapping[str, Any] | None
    tokenizer_source: str | None
    chat_template: str | None
    architectures: Mapping[ModelRef, str]
    """The `override_architecture` of references that have one."""
    raw: Mapping[str, Any]
    """The recipe as plain data, as written."""
    text: str
    """The recipe as YAML: the original text, if there was one."""
    file: str
    marks: Marks

    def models(self) -> tuple[ModelRef, ...]:
        """Every checkpoint the recipe names, bases included, each once, in order of appearance."""
        found: dict[ModelRef, None] = {}
        for module in self.modules:
            for piece in module.slices:
                found.update((source.model, None) for source in piece.sources)
                if piece.base_model:
                    found[piece.base_model] = None
        if self.base_model:
            found[self.base_model] = None
        return tuple(found)


def base_of(recipe: Recipe, piece: SliceRecipe) -> ModelRef | None:
    """The base model of a slice: its own, else the recipe's."""
    return piece.base_model or recipe.base_model


def base_source(recipe: Recipe, piece: SliceRecipe) -> SourceRecipe | None:
    """The source that is the base of a slice; if it is listed more than once, the first."""
    base = base_of(recipe, piece)
    return next((source for source in piece.sources if source.model == base), None)


def inputs_of(recipe: Recipe, piece: SliceRecipe, spec: MethodSpec) -> tuple[SourceRecipe, ...]:
    """The sources that take per-model parameters: all but the base, unless the method merges it like any other."""
    if spec.base_is_input:
        return piece.sources
    base = base_source(recipe, piece)
    return tuple(source for source in piece.sources if source is not base)
