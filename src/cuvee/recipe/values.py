"""What every parameter is for one output tensor: precedence, gradients and filters put together.

The nearest place that has a value wins: the model's own parameters, then the slice's, the module's, the recipe's, the
method's default; filters that match no part of the tensor's name pass the question on. Which tensors and layers there
are is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cuvee.errors import RecipeError
from cuvee.methods.spec import REQUIRED, MethodSpec, Parameter
from cuvee.recipe.language import Constant, Filters, Value, parse_value
from cuvee.recipe.schema import ModuleRecipe, Parameters, Recipe, SliceRecipe, SourceRecipe, inputs_of
from cuvee.recipe.yaml_marks import Path, path_text


@dataclass(frozen=True, slots=True)
class Site:
    """A slice, with what stands around it."""

    recipe: Recipe
    module: ModuleRecipe
    piece: SliceRecipe

    def levels(self, source: SourceRecipe | None) -> tuple[tuple[Parameters, Path], ...]:
        """Where a parameter may stand, nearest first, and the path of what it belongs to.

        Args:
            source: whose per-model parameter; None for parameters that are not per model.
        """
        shared: tuple[tuple[Parameters, Path], ...] = (
            (self.piece.parameters, self.piece.path),
            (self.module.parameters, self.module.path),
            (self.recipe.parameters, ()),
        )
        return shared if source is None else ((source.parameters, source.path), *shared)


def resolve(value: Any, *, t: float, tensor: str) -> Any:
    """What a parameter's value is for one tensor: a scalar, or None if it has filters and none matches.

    Args:
        value: scalar, gradient or filters, in plain data.
        t: position of the tensor's layer in its slice, 0 to 1; 0 outside layers.
        tensor: the tensor's name.

    Raises:
        RecipeError: if the value is none of these.
    """
    return parse_value(value).at(t, tensor)


def resolve_parameters(
    recipe: Recipe,
    module: ModuleRecipe,
    piece: SliceRecipe,
    spec: MethodSpec,
    *,
    t: float,
    tensor: str,
    depth: float | None = None,
) -> dict[str, Any]:
    """Every parameter of the method for one output tensor, by argument name.

    Per-model parameters are tuples in the order of `schema.inputs_of`. Parsed values are cached by slice, so that a
    call costs microseconds. `t` is as in `resolve`; `depth`, which parameters marked `by_depth` go by, is the same
    but 1 for tensors after the layers.

    Raises:
        RecipeError: if a required parameter has no value for this tensor.
    """
    return _resolver(Site(recipe, module, piece), _Same(spec))(t, t if depth is None else depth, tensor)


class _Same:
    """A cache key that is the object itself (specs hold mappings, which do not hash)."""

    def __init__(self, spec: MethodSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.spec is self.spec


@dataclass(frozen=True, slots=True)
class _Chain:
    """One parameter (of one model): values to try in order, and what to do when none matches."""

    parameter: Parameter
    model: str | None
    values: tuple[Value, ...]
    where: str

    @property
    def constant(self) -> bool:
        if self.values:
            return isinstance(self.values[0], Constant)
        return not self.parameter.required

    def at(self, t: float, tensor: str) -> Any:
        for value in self.values:
            found = value.at(t, tensor)
            if found is not None:
                return min(max(found, 0.0), 1.0) if self.parameter.share else found
        if self.parameter.default is REQUIRED:
            raise self._missing(tensor)
        return self.parameter.default

    def _missing(self, tensor: str) -> RecipeError:
        name = self.parameter.name
        whose = f"model {self.model} has no {name}" if self.model else f"there is no {name}"
        return RecipeError(
            f"{whose} for tensor {tensor}",
            where=self.where,
            fix=f"add an entry without a filter (`- value: ...`) as the last one of {name}"
            if self.values
            else f"set {name}",
            tensor=tensor,
            parameter=name,
            model=self.model,
        )


@lru_cache(maxsize=4096)
def _resolver(site: Site, same: _Same) -> Callable[[float, float, str], dict[str, Any]]:
    """The function from (t, depth, tensor) to parameters, with all that does not vary worked out."""
    fixed: dict[str, Any] = {}
    single: list[tuple[str, _Chain]] = []
    several: list[tuple[str, tuple[_Chain, ...]]] = []
    inputs = inputs_of(site.recipe, site.piece, same.spec)
    for parameter in same.spec.parameters.values():
        sources = inputs if parameter.per_model else (None,)
        chains = tuple(_chain(parameter, source, site) for source in sources)
        if parameter.stage and not any(chain.values for chain in chains):
            continue
        fixed[parameter.argument] = None
        if all(chain.constant for chain in chains):
            values = tuple(chain.at(0.0, "") for chain in chains)
            fixed[parameter.argument] = values if parameter.per_model else values[0]
        elif parameter.per_model:
            several.append((parameter.argument, chains))
        else:
            single.append((parameter.argument, chains[0]))

    def at(t: float, depth: float, tensor: str) -> dict[str, Any]:
        found = fixed.copy()
        for argument, chain in single:
            found[argument] = chain.at(depth if chain.parameter.by_depth else t, tensor)
        for argument, chains in several:
            found[argument] = tuple([chain.at(t, tensor) for chain in chains])
        return found

    return at


def _chain(parameter: Parameter, source: SourceRecipe | None, site: Site) -> _Chain:
    values: list[Value] = []
    marks = site.recipe.marks
    where = marks.where(source.path if source else site.piece.path)
    for parameters, path in site.levels(source):
        written = parameters.get(parameter.name)
        if written is None:
            continue
        place = (*path, "parameters", parameter.name)
        where = where if values else marks.where(place)
        try:
            values.append(parse_value(written, parameter))
        except RecipeError as error:
            inside = (*place, *error.facts.pop("inside", ()))
            raise error.at(marks.where(inside), path=path_text(inside)) from None
        if not isinstance(values[-1], Filters) or values[-1].exhaustive:
            break
    return _Chain(parameter, str(source.model) if source else None, tuple(values), where)
