"""Whether a recipe's models and parameters are what its method needs: counts, base, required values."""

from __future__ import annotations

from cuvee.errors import RecipeError
from cuvee.methods.spec import MethodSpec
from cuvee.recipe.notes import Notes, Oddity, shown
from cuvee.recipe.schema import (
    Recipe,
    SliceRecipe,
    SourceRecipe,
    base_of,
    base_source,
    inputs_of,
)
from cuvee.recipe.values import Site
from cuvee.recipe.yaml_marks import Path


def check_recipe(recipe: Recipe, spec: MethodSpec, notes: Notes) -> None:
    """Refuses a recipe that lacks what its method needs.

    Raises:
        RecipeError: naming the model, the number or the parameter that is missing.
    """
    for module in recipe.modules:
        for piece in module.slices:
            _check_base(recipe, piece, spec, notes)
            _check_count(recipe, piece, spec, notes)
            _check_required(Site(recipe, module, piece), spec, notes)
            _note_base_parameters(recipe, piece, spec, notes)


def _check_base(recipe: Recipe, piece: SliceRecipe, spec: MethodSpec, notes: Notes) -> None:
    base = base_of(recipe, piece)
    if base is None:
        if spec.base == "required":
            models = ", ".join(str(source.model) for source in piece.sources)
            raise notes.error(
                f"{spec.name} needs a base model, and the recipe names none",
                ("merge_method",),
                expected="base_model: one of the models, or the model they were trained from",
                found=f"models {models}"[:300],
                fix="add `base_model: NAME` at the top of the recipe",
            )
        if recipe.only is not None:
            fix = "add `base_model: NAME` at the top of the recipe"
            raise notes.error("`only` needs a base model to take the other tensors from", ("only",), fix=fix)
    elif not spec.base_is_input and base_source(recipe, piece) is None:
        start, stop = piece.sources[0].layer_range or (0, 0)
        raise notes.error(
            f"a slice does not say which layers of the base model {base} take part",
            (*piece.path, "sources"),
            expected=f"{base} among the slice's sources",
            found=", ".join(str(source.model) for source in piece.sources)[:300],
            fix=f"add `- {{model: {base}, layer_range: [{start}, {stop}]}}` to the sources",
        )


def _check_count(recipe: Recipe, piece: SliceRecipe, spec: MethodSpec, notes: Notes) -> None:
    found = inputs_of(recipe, piece, spec)
    fewest, most = spec.min_models, spec.max_models
    if fewest <= len(found) and (most is None or len(found) <= most):
        return
    names = ", ".join(map(_describe, found))[:300]
    if most is None:
        expected = f"at least {_models(fewest)}"
    elif fewest == most:
        expected = f"exactly {_models(fewest)}"
    else:
        expected = f"{fewest} to {_models(most)}"
    base = base_of(recipe, piece)
    beside = "" if spec.base_is_input or base is None else f" beside the base {base}"
    fix = None
    if spec.base_is_input and any(source.path == ("base_model",) for source in found) and len(found) > fewest:
        fix = f"remove base_model: {spec.name} has no base, so it merges that model like any other"
    raise notes.error(
        f"{spec.name} cannot merge {_models(len(found))}{beside}",
        piece.path if piece.path[-1] == "models" else (*piece.path, "sources"),
        expected=expected + beside,
        found=f"{len(found)}: {names}" if names else "none",
        fix=fix,
    )


def _describe(source: SourceRecipe) -> str:
    return f"{source.model} (the base_model)" if source.path == ("base_model",) else str(source.model)


def _models(count: int) -> str:
    return f"{count} model" if count == 1 else f"{count} models"


def _check_required(site: Site, spec: MethodSpec, notes: Notes) -> None:
    for parameter in spec.parameters.values():
        if not parameter.required:
            continue
        name = parameter.name
        for source in inputs_of(site.recipe, site.piece, spec) if parameter.per_model else (None,):
            if not any(name in parameters for parameters, _ in site.levels(source)):
                raise _missing(name, site, source, spec, notes)


def _missing(name: str, site: Site, source: SourceRecipe | None, spec: MethodSpec, notes: Notes) -> RecipeError:
    """The error for a required parameter that is nowhere, pointing at the oddity that probably explains it."""
    what = f"model {source.model} has no {name}" if source else f"{spec.name} needs the parameter {name}"
    expected = f"{name}, one for each model or one for all" if source else f"{name} under `parameters`"
    facts = {"parameter": name, "model": str(source.model) if source else None}
    places = [path for _, path in site.levels(source)]
    if source is None:
        places += [each.path for each in site.piece.sources]
    oddity = _explanation(name, places, notes)
    if oddity is not None:
        line = notes.marks.line(oddity.path)
        found = oddity.what if line is None else f"in line {line}: {oddity.what}"
        return notes.error(what, oddity.path, expected=expected, found=found, fix=oddity.fix, **facts)
    if source is None:
        fix = f"add `parameters: {{{name}: ...}}` at the top of the recipe"
    elif source.path == ("base_model",):
        fix = f"list the base under models with a {name}, or remove base_model: {spec.name} has no use for a base"
    else:
        fix = f"add `parameters: {{{name}: ...}}` to its entry, or {name} to the parameters at the top"
    return notes.error(what, source.path if source else ("merge_method",), expected=expected, fix=fix, **facts)


def _explanation(name: str, places: list[Path], notes: Notes) -> Oddity | None:
    """An oddity that meant this parameter or the key `parameters`, at one of the places or in its parameters."""
    for place in places:
        for oddity in notes.oddities:
            around = oddity.path[:-1]
            if oddity.meant in (name, "parameters") and around in (place, (*place, "parameters")):
                return oddity
    return None


def _note_base_parameters(recipe: Recipe, piece: SliceRecipe, spec: MethodSpec, notes: Notes) -> None:
    base = base_source(recipe, piece)
    if spec.base_is_input or base is None:
        return
    for name, value in base.parameters.items():
        parameter = spec.parameters[name]
        if parameter.per_model:
            notes.odd(
                f"{base.model} is the base model, so its {name} of {shown(value)} has no effect",
                (*base.path, "parameters", name),
                "remove it",
            )
