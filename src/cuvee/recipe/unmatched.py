"""Parts of tensor names that a recipe looks for and no tensor has: misspelt, mostly, and then without any effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from cuvee.recipe.notes import nearest, shown
from cuvee.recipe.schema import Parameters, Recipe
from cuvee.recipe.yaml_marks import Path

_MOST = 20


def unmatched(recipe: Recipe, names: Collection[str]) -> Iterator[str]:
    """A line for each filter and each part under `only` that is in none of the output's tensor `names`; twenty at most.

    One that stands in several places is told where it stands first.
    """
    text = "\n".join(names)
    first = dict(reversed([*_looked_for(recipe)]))
    lost = [(part, path) for part, path in reversed(first.items()) if part not in text]
    steps = {step for name in names for step in name.split(".")} if lost else set()
    for part, path in lost[:_MOST]:
        near = nearest(part, steps)
        fix = f"; did you mean {near}?" if near else ""
        yield f"{recipe.marks.where(path)}: no tensor has {shown(part)} in its name{fix}"


def _looked_for(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    for index, part in enumerate(recipe.only or ()):
        yield part, ("only", index)
    yield from _filters(recipe.parameters, ())
    for module in recipe.modules:
        yield from _filters(module.parameters, module.path)
        for piece in module.slices:
            yield from _filters(piece.parameters, piece.path)
            for source in piece.sources:
                yield from _filters(source.parameters, source.path)


def _filters(parameters: Parameters, path: Path) -> Iterator[tuple[str, Path]]:
    for name, value in parameters.items():
        place = (*path, "parameters", name)
        entries = [(value, place)] if isinstance(value, Mapping) else []
        if isinstance(value, list):
            entries = [(entry, (*place, index)) for index, entry in enumerate(value) if isinstance(entry, Mapping)]
        for entry, where in entries:
            part = entry.get("filter")
            if part is not None and part != "*":
                yield part, (*where, "filter")
