"""Which output tensors there are and which input tensors each is made of: names only, no parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cuvee.errors import PlanError
from cuvee.layout.facts import MODULES
from cuvee.layout.layout import Layout, layout_of
from cuvee.layout.modules import owner
from cuvee.layout.names import acts_before_layers, place_of, stored_number
from cuvee.planning.matching import Match, Member, Rules, differing, matched
from cuvee.planning.ops import Decision
from cuvee.planning.slices import Cut, Group, check_kinds, sliced
from cuvee.recipe.schema import ModuleRecipe, Recipe, SliceRecipe, base_source
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef

Checkpoints = Mapping[ModelRef, Checkpoint]
_MAX_INPUTS = 1 << 22  # about a gigabyte of plan, thirty times DeepSeek-V3's three models
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output tensor.

    Attributes:
        name: its name in the output.
        inputs: the input tensor's name in each source of its slice; None where a source has none.
        module: the recipe's module that it belongs to.
        slice_: the slice that it belongs to.
        t: its position, for gradients.
        copied: which source is copied instead of merging; None to merge.
        number: what the tensor holds if it is its layer's own number, which slices change.

    """

    name: str
    inputs: tuple[str | None, ...]
    module: ModuleRecipe
    slice_: SliceRecipe
    t: float
    copied: int | None = None
    number: int | None = None


def depth_of(wanted: Wanted) -> float:
    """Where in the model a tensor acts: as t in layers, 0 before them, 1 after them (final norm, head)."""
    outside = place_of(wanted.name).stack is None
    return 1.0 if outside and not acts_before_layers(wanted.name) else wanted.t


@dataclass(frozen=True)
class Outline:
    """All output tensors, and what goes with them.

    Attributes:
        tensors: the output's tensors.
        cuts: module name -> what its slices make of its stack.
        decisions: what was decided where models differ.

    """

    tensors: tuple[Wanted, ...]
    cuts: Mapping[str, Cut]
    decisions: tuple[Decision, ...]


def home_of(recipe: Recipe) -> ModelRef:
    """The model whose config the output takes, and whose word counts where models differ: the base, else the first."""
    return recipe.base_model or recipe.modules[0].slices[0].sources[0].model


def outline(recipe: Recipe, checkpoints: Checkpoints, *, crimes: bool = False) -> Outline:
    """What the recipe wants of these checkpoints.

    Args:
        recipe: what to merge.
        checkpoints: every model of the recipe.
        crimes: whether what does not fit is the base's instead of an error.

    Raises:
        PlanError: if a layer range leaves its model, or tensors have no counterpart.

    """
    rules = Rules(recipe.missing or ("base" if crimes else "error"), crimes)
    tensors: list[Wanted] = []
    cuts: dict[str, Cut] = {}
    for module in recipe.modules:
        layouts = _layouts(recipe, module, checkpoints, rules)
        if any(source.layer_range is not None for slice_ in module.slices for source in slice_.sources):
            groups, cuts[module.name] = sliced(recipe, module, layouts, checkpoints)
            check_kinds(cuts[module.name], checkpoints[home_of(recipe)])
        else:
            groups = [_whole(slice_, layouts, checkpoints) for slice_ in module.slices]
        for group in groups:
            tensors.extend(bounded(_matched(recipe, module, group, layouts, rules)))
    tensors.extend(_unclaimed(recipe, checkpoints, rules))
    _check_distinct(tensors)
    if crimes:
        _check_something_fits(home_of(recipe), checkpoints, tensors)
    return Outline(tuple(tensors), cuts, rules.decisions)


def bounded(wanted: Iterable[Wanted]) -> Iterator[Wanted]:
    """The tensors, as long as a plan of them can be held: a short recipe may repeat layers or models without end."""
    total = 0
    for each in wanted:
        total += len(each.inputs)
        if total > _MAX_INPUTS:
            raise PlanError(
                "the recipe asks for more than a plan can hold",
                expected=f"at most {_MAX_INPUTS:,} input tensors, counted each time one is used",
                fix="merge fewer models at a time, or repeat fewer layers",
            )
        yield each


def _layouts(recipe: Recipe, module: ModuleRecipe, checkpoints: Checkpoints, rules: Rules) -> dict[ModelRef, Layout]:
    """The layout of a module in every model that takes part in it."""
    modules = tuple(each.name for each in recipe.modules)
    models = dict.fromkeys(source.model for slice_ in module.slices for source in slice_.sources)
    return {model: _module_layout(checkpoints[model], module.name, modules, rules) for model in models}


def _module_layout(checkpoint: Checkpoint, module: str, modules: Sequence[str], rules: Rules) -> Layout:
    """The layout of those tensors of a checkpoint that belong to one of the recipe's modules."""
    whole = layout_of(checkpoint.tensors, checkpoint.config)
    if modules == ("default",):
        return whole
    owners = {name: owner(name, modules) for name in checkpoint.tensors}
    places = {name: place for name, place in whole.places.items() if owners[name] == module}
    if not places:
        raise PlanError(
            f"{checkpoint.name} has no module {module!r}",
            expected="a module whose tensors it holds; known names: " + ", ".join(MODULES),
            fix="use a module's name or the first part of its tensors' names, as `cuvee layout` shows them",
        )
    lost = [name for name, found in owners.items() if found is None]
    if lost and rules.missing == "error":
        raise PlanError(
            f"{len(lost)} tensors of {checkpoint.name} belong to none of the recipe's modules",
            found=", ".join(lost[:_SHOWN]),
            fix="list the other modules too, with the model to take them from, or set `missing: base`",
            tensor=lost[0],
        )
    return Layout(places, whole.counts)


def _whole(slice_: SliceRecipe, layouts: Mapping[ModelRef, Layout], checkpoints: Checkpoints) -> Group:
    """Every tensor of every model, matched by name."""
    members = [
        Member(checkpoints[source.model], {name: name for name in layouts[source.model].places})
        for source in slice_.sources
    ]
    return Group(slice_, tuple(members))


def _matched(
    recipe: Recipe, module: ModuleRecipe, group: Group, layouts: Mapping[ModelRef, Layout], rules: Rules
) -> Iterator[Wanted]:
    """The output tensors of a group of models."""
    slice_ = group.slice_
    source = base_source(recipe, slice_)
    base = slice_.sources.index(source) if source else 0
    for match in matched(group.members, base, rules, _refusal(recipe, group)):
        t = _position(match, slice_, layouts) if group.t is None else group.t
        place = place_of(match.name)
        number = None if group.layer is None else stored_number(place.rest, place.layer)
        yield Wanted(match.name, match.inputs, module, slice_, t, match.copied, number)


def _position(match: Match, slice_: SliceRecipe, layouts: Mapping[ModelRef, Layout]) -> float:
    holders = (layouts[source.model] for source in slice_.sources)
    return next((layout.position(match.name) for layout in holders if match.name in layout.places), 0.0)


def _refusal(recipe: Recipe, group: Group) -> Callable[[str, Sequence[Member]], PlanError]:
    """What makes the error for tensors that may not be missing from a group."""

    def refuse(name: str, members: Sequence[Member]) -> PlanError:
        fix = "merge checkpoints of one architecture; `missing: base` copies such tensors, `missing: skip` drops them"
        if group.layer is None:
            return PlanError(
                "the models do not hold the same tensors",
                expected="every tensor in every model",
                found=differing(members, (own for member in members for own in member.names)),
                fix=fix,
                tensor=name,
            )
        lacking = ", ".join(m.checkpoint.name for m in members if name not in m.names)
        return PlanError(
            "the slice's layers do not hold the same tensors",
            found=f"layer {group.layer} of the slice: {lacking} lacks {place_of(name).rest}",
            where=recipe.marks.where(group.slice_.path),
            fix="slice layers of the same kind; " + fix,
            tensor=name,
        )

    return refuse


def _unclaimed(recipe: Recipe, checkpoints: Checkpoints, rules: Rules) -> Iterator[Wanted]:
    """The tensors of the base that belong to none of the recipe's modules: copied if `missing: base` says so."""
    home = home_of(recipe)
    modules = tuple(module.name for module in recipe.modules)
    if modules == ("default",) or rules.missing != "base":
        return
    module, slice_ = next(
        (module, slice_)
        for module in recipe.modules
        for slice_ in module.slices
        if any(source.model == home for source in slice_.sources)
    )
    position = next(i for i, source in enumerate(slice_.sources) if source.model == home)
    for name in checkpoints[home].tensors:
        if owner(name, modules) is None:
            rules.decide(f"copied from {checkpoints[home].name}: of no module that the recipe names", name)
            inputs = tuple(name if i == position else None for i in range(len(slice_.sources)))
            yield Wanted(name, inputs, module, slice_, 0.0, position)


def _check_something_fits(home: ModelRef, checkpoints: Checkpoints, tensors: Sequence[Wanted]) -> None:
    merged = {
        source.model
        for wanted in tensors
        for source, own in zip(wanted.slice_.sources, wanted.inputs, strict=True)
        if own is not None and wanted.copied is None
    }
    if strangers := [checkpoints[ref].name for ref in checkpoints if ref not in {home, *merged}]:
        raise PlanError(
            f"no tensor of {', '.join(strangers)} fits the others in name and shape",
            fix="leave the model out; even with --allow-crimes there is nothing to merge",
        )


def _check_distinct(tensors: Sequence[Wanted]) -> None:
    name, count = Counter(wanted.name for wanted in tensors).most_common(1)[0] if tensors else ("", 1)
    if count > 1:
        raise PlanError(f"the recipe makes tensor {name!r} {count} times", fix="let modules not overlap", tensor=name)
