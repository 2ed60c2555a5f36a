"""The body of a recipe: `models`, `slices` or `modules` as a tuple of modules. What methods need is checked later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from cuvee.errors import RecipeError
from cuvee.methods.spec import MethodSpec
from cuvee.recipe.fields import layer_range, mapping, number, sequence
from cuvee.recipe.keys import check_keys, check_parameter_name
from cuvee.recipe.language import FILTER_KEYS, Value, parse_value, scalars
from cuvee.recipe.notes import Notes, shown
from cuvee.recipe.references import read_reference
from cuvee.recipe.renames import Rename, read_rename
from cuvee.recipe.schema import ModuleRecipe, Parameters, SliceRecipe, SourceRecipe
from cuvee.recipe.yaml_marks import Path
from cuvee.tensors.reference import ModelRef

_FORMS = ("models", "slices", "modules")


class Body:
    """Reads the body of one recipe: what all its parts need to know, and architectures and renames met on the way."""

    def __init__(self, spec: MethodSpec, base: ModelRef | None, notes: Notes) -> None:
        self.spec = spec
        self.base = base
        self.notes = notes
        self.architectures: dict[ModelRef, str] = {}
        self.renames: dict[ModelRef, Rename] = {}

    def modules(self, data: Mapping[str, Any]) -> tuple[ModuleRecipe, ...]:
        """The modules of a whole recipe; one called `default` unless it names them."""
        form = self._form(data, (), _FORMS)
        if form != "modules":
            return (ModuleRecipe("default", self._slices(data, form, ()), {}, ()),)
        what = "modules"
        named = mapping(data[form], (form,), self.notes, what=what, fix="write `modules: {NAME: {models: [...]}}`")
        if not named:
            raise self.notes.error("modules names no module", (form,), expected="{NAME: {models: [...]}}")
        return tuple(self._module(name, entry) for name, entry in named.items())

    def parameters(self, data: Mapping[str, Any], path: Path, *, per_model: bool = False) -> Parameters:
        """The `parameters` of one level, checked against the method's."""
        path = (*path, "parameters")
        written = data.get("parameters")
        if written is None:
            return {}
        found: dict[str, Any] = {}
        for name, value in mapping(written, path, self.notes, what="parameters").items():
            parameter = self.spec.parameters.get(name)
            here = (*path, name)
            if parameter is None:
                check_parameter_name(name, here, self.spec, self.notes)
            elif value is not None:
                try:
                    parsed = parse_value(value, parameter)
                except RecipeError as error:
                    raise self.notes.placed(error, here) from None
                if parameter.share:
                    self._check_shares(parsed, here)
                self._check_filters(value, here)
                found[name] = value
                if per_model and not parameter.per_model and name not in ("int8_mask",):
                    self.notes.odd(
                        f"{name} is one value for the whole merge and has no effect under a model",
                        here,
                        "move it to the `parameters` at the top of the recipe",
                        meant=name,
                    )
        return found

    def _form(self, data: Mapping[str, Any], path: Path, forms: tuple[str, ...]) -> str:
        given = [form for form in forms if data.get(form) is not None]
        if len(given) == 1:
            return given[0]
        choice = ", ".join(forms[:-1]) + f" or {forms[-1]}"
        whose = f"module {path[-1]}" if path else "the recipe"
        if not given:
            fix = "list the models to merge under `models:`"
            raise self.notes.error(
                f"{whose} says nothing about what to merge", path, expected=f"one of {choice}", fix=fix
            )
        raise self.notes.error(
            f"{whose} has both {' and '.join(given)}",
            (*path, given[1]),
            expected=f"exactly one of {choice}: each of them is a whole description of the merge",
            found=", ".join(f"{form} in line {self.notes.marks.line((*path, form))}" for form in given),
            fix="this was probably meant:\n" + _shorter(data, given),
        )

    def _module(self, name: Any, entry: Any) -> ModuleRecipe:
        path = ("modules", name)
        data = mapping(entry, path, self.notes, what=f"module {shown(name)}")
        check_keys(data, "module", path, self.spec, self.notes)
        form = self._form(data, path, _FORMS[:2])
        slices = self._slices(data, form, path)
        return ModuleRecipe(str(name), slices, self.parameters(data, path), path)

    def _slices(self, data: Mapping[str, Any], form: str, path: Path) -> tuple[SliceRecipe, ...]:
        path = (*path, form)
        entries = sequence(data[form], path, self.notes, what=form, fix="start each entry with a dash")
        if form == "slices":
            return tuple(self._slice(entry, (*path, index)) for index, entry in enumerate(entries))
        sources = tuple(self._source(entry, (*path, index), "model") for index, entry in enumerate(entries))
        if self.base and all(source.model != self.base for source in sources):
            sources = (*sources, SourceRecipe(self.base, None, {}, ("base_model",)))
        return (SliceRecipe(sources, None, {}, None, path),)

    def _slice(self, entry: Any, path: Path) -> SliceRecipe:
        data = mapping(entry, path, self.notes, what="a slice", fix="write `- sources: [...]`")
        check_keys(data, "slice", path, self.spec, self.notes)
        if data.get("sources") is None:
            fix = "write `- sources:` and the models under it"
            raise self.notes.error("a slice has no sources", path, expected="a list of {model, layer_range}", fix=fix)
        entries = sequence(
            data["sources"],
            (*path, "sources"),
            self.notes,
            what="sources",
            fix="start each entry with a dash",
        )
        sources = tuple(self._source(item, (*path, "sources", i), "source") for i, item in enumerate(entries))
        self._check_lengths(sources)
        base = None if data.get("base_model") is None else self.reference(data["base_model"], (*path, "base_model"))
        residual = number(data.get("residual_weight"), (*path, "residual_weight"), self.notes, what="residual_weight")
        return SliceRecipe(sources, base, self.parameters(data, path), residual, path)

    def _source(self, entry: Any, path: Path, level: str) -> SourceRecipe:
        fix = f"write `- model: {entry}`" if isinstance(entry, str) else None
        data = mapping(entry, path, self.notes, what="an entry of " + str(path[-2]), fix=fix)
        check_keys(data, level, path, self.spec, self.notes)
        if data.get("model") is None:
            only_parameters = path[-1] > 0 and set(data) <= {"parameters", *self.spec.parameters}
            fix = (
                "remove its dash: it seems to belong to the entry before" if only_parameters else "write `model: NAME`"
            )
            raise self.notes.error("an entry names no model", path, found=shown(dict(data)), fix=fix)
        layers = None
        if level == "source":
            if data.get("layer_range") is None:
                fix = "add `layer_range: [first, after the last]`, or use `models` to merge whole models"
                raise self.notes.error(f"source {shown(data['model'])} has no layer_range", path, fix=fix)
            layers = layer_range(data["layer_range"], (*path, "layer_range"), self.notes)
        model = self.reference(data["model"], (*path, "model"))
        rename = read_rename(data.get("rename"), (*path, "rename"), self.notes)
        if rename and self.renames.setdefault(model, rename) != rename:
            fix = "write the same rename wherever the model is listed, or write it once"
            raise self.notes.error(f"{model} is renamed in two ways", (*path, "rename"), fix=fix)
        return SourceRecipe(model, layers, self.parameters(data, path, per_model=True), path)

    def reference(self, data: Any, path: Path) -> ModelRef:
        """A model reference, its architecture remembered."""
        model, architecture = read_reference(data, path, self.notes)
        if architecture:
            self.architectures[model] = architecture
        return model

    def _check_lengths(self, sources: tuple[SourceRecipe, ...]) -> None:
        first = sources[0].layer_range or (0, 0)
        for source in sources[1:]:
            start, stop = source.layer_range or (0, 0)
            if stop - start != first[1] - first[0]:
                raise self.notes.error(
                    "the sources of a slice span different numbers of layers",
                    (*source.path, "layer_range"),
                    expected=f"{first[1] - first[0]} layers, like {list(first)} of {sources[0].model}",
                    found=f"{stop - start} layers, [{start}, {stop}] of {source.model}",
                )

    def _check_shares(self, value: Value, path: Path) -> None:
        for share in scalars(value):
            if not 0 <= share <= 1:
                end = 0 if share < 0 else 1
                fix = f"for {share:g} percent write {share / 100:g}" if 1 < share <= 100 else f"write {end}"
                self.notes.odd(f"{path[-1]} is a share of a whole, from 0 to 1: {share:g} counts as {end}", path, fix)

    def _check_filters(self, value: Any, path: Path) -> None:
        for index, entry in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(entry, Mapping):
                place = (*path, index) if isinstance(value, list) else path
                for key in entry:
                    if key not in FILTER_KEYS:
                        self.notes.odd(f"unknown key {shown(key)}", (*place, key), "a filter has filter and value")


def _shorter(data: Mapping[str, Any], given: list[str]) -> str:
    """The recipe with one description of the merge: the one that says more."""
    keep = given[-1]
    if given == ["models", "slices"] and _is_whole(data["slices"]):
        keep = "models"
    rest = {key: value for key, value in data.items() if key not in given or key == keep}
    text = yaml.safe_dump(rest, sort_keys=False, allow_unicode=True, width=100)
    lines = text.splitlines()
    shortened = [*lines[:40], "..."] if len(lines) > 40 else lines
    return "\n".join("    " + line[:200] for line in shortened)


def _is_whole(slices: Any) -> bool:
    """Whether `slices` is a single one, from each model's first layer on, that says no more than `models` would."""
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
        return False
    written = slices[0].get("sources")
    sources = [entry for entry in written if isinstance(entry, Mapping)] if isinstance(written, list) else []
    ranges = [entry.get("layer_range") for entry in sources]
    same = all(isinstance(ends, list) and ends[:1] == [0] and ends == ranges[0] for ends in ranges)
    return bool(ranges) and same and not any(entry.get("parameters") for entry in sources)
