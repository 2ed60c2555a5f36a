"""Slices: which layers of which models become which layers of the output, and what stands before and after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.errors import PlanError
from cuvee.layout.edits import layer_edits
from cuvee.layout.layout import Layout, layout_of
from cuvee.layout.names import acts_before_layers
from cuvee.planning.matching import Member
from cuvee.recipe.schema import ModuleRecipe, Recipe, SliceRecipe, SourceRecipe
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef

_MATRIX = 2  # axes that embeddings, heads and their like have


@dataclass(frozen=True)
class Group:
    """Models whose tensors are matched with each other.

    Attributes:
        slice_: the slice whose sources they are.
        members: one for each source, in order.
        t: the position of all of them; None to ask the layout for each tensor.
        layer: the layer within the slice; None if this is no single layer.

    """

    slice_: SliceRecipe
    members: tuple[Member, ...]
    t: float | None = None
    layer: int | None = None


@dataclass(frozen=True)
class Cut:
    """What slices make of a stack: for every output layer its position in the first source of its slice."""

    stack: str
    kept: tuple[int, ...]
    builds: tuple[frozenset[str], ...]
    """What every output layer is made of, by the names of its tensors within the layer."""
    origins: tuple[Mapping[str, Any], ...]
    """For every output layer the config of that first source."""


def sliced(
    recipe: Recipe, module: ModuleRecipe, layouts: Mapping[ModelRef, Layout], checkpoints: Mapping[ModelRef, Checkpoint]
) -> tuple[list[Group], Cut]:
    """The groups of a module made of slices, and what becomes of its stack.

    Layers are numbered through over the slices. Tensors before them come from the first slice's models, those after
    them (layers beyond the config's count included) from the last slice's.

    Raises:
        PlanError: if a layer range leaves its model, or the model has several stacks.

    """
    for layout in layouts.values():
        _check_one_stack(layout)
    total = sum(_length(slice_) for slice_ in module.slices)
    first, last = module.slices[0], module.slices[-1]
    groups = [_outside(first, layouts, checkpoints, before=True, total=total)]
    kept: list[int] = []
    builds: list[frozenset[str]] = []
    origins: list[Mapping[str, Any]] = []
    stack = _stack(first.sources[0], layouts)
    for slice_ in module.slices:
        _check_ranges(recipe, slice_, layouts)
        groups.extend(_layers(slice_, layouts, checkpoints, stack, len(kept)))
        leader = slice_.sources[0]
        own = layouts[leader.model]
        positions = range(*(leader.layer_range or (0, 0)))
        builds += [own.build(_stack(leader, layouts), own.stacks[_stack(leader, layouts)][i]) for i in positions]
        origins += [checkpoints[leader.model].config] * len(positions)
        kept += positions
    groups.append(_outside(last, layouts, checkpoints, before=False, total=total))
    return groups, Cut(stack, tuple(kept), tuple(builds), tuple(origins))


def check_kinds(cut: Cut, base: Checkpoint) -> None:
    """Refuses stacks whose layers are of other kinds than the base's config will say.

    Configs that list the kind of every layer follow the slices. Others compute it from the layer's number (every
    fourth layer has full attention), so a layer may only move to where the config expects its kind.

    Raises:
        PlanError: if a layer has moved to where another kind is expected.

    """
    layout = layout_of(base.tensors, base.config)
    if cut.stack not in layout.stacks:
        return
    _check_outside(cut, base, layout)
    known = [layout.build(cut.stack, number) for number in layout.stacks[cut.stack]]
    edits = layer_edits(base.config, layout, cut.stack, cut.kept, cut.origins)
    counts = {count.path for count in layout.counts.get(cut.stack, ())}
    if any(path not in counts or not isinstance(new, int) for path, new in edits.items()):
        return
    _check_widths(cut, base, layout)
    if len(set(known)) == 1:
        return
    for position, build in enumerate(cut.builds):
        expected = _expected(known, position)
        if expected is not None and build != expected:
            raise PlanError(
                f"layer {position} of the output would be of another kind than its config says",
                expected=f"a layer like {position % len(known)} of {base.name}, whose config computes kinds of layers"
                " from their numbers",
                found=f"layer {cut.kept[position]}, which has {_example(build, expected)}",
                fix="cut whole periods of layers, so that every layer keeps its place in the pattern",
            )


def _check_outside(cut: Cut, base: Checkpoint, layout: Layout) -> None:
    """Tensors outside the layers that hold something for each of them (YOLOS' positions) or between any two."""
    count = len(layout.stacks[cut.stack])
    if len(cut.kept) == count:
        return
    inside = {name for layer in layout.layers.values() for name in layer.values()}
    for name, source in base.tensors.items():
        if name not in inside and len(source.shape) > _MATRIX and source.shape[0] in {count, count - 1} - {1}:
            raise PlanError(
                f"tensor {name!r} lies outside the layers and seems to hold a part for each",
                expected=f"as many layers as {base.name} has: {count}",
                found=f"{len(cut.kept)} layers, and a tensor of shape {list(source.shape)}",
                fix="keep the number of layers",
                tensor=name,
            )


def _check_widths(cut: Cut, base: Checkpoint, layout: Layout) -> None:
    """Layers of one kind whose shapes differ (the stages of Swin) grow with their number: each only fits its place."""
    layers = [layout.layers.get((cut.stack, number), {}) for number in layout.stacks[cut.stack]]
    shapes = [{(rest, base.tensors[name].shape) for rest, name in layer.items()} for layer in layers]
    seen = Counter(rest for rest, _ in set().union(*shapes))
    known = [frozenset(f"{rest} {list(shape)}" for rest, shape in layer if seen[rest] > 1) for layer in shapes]
    if len(set(known)) == 1:
        return
    for position, number in enumerate(cut.kept):
        if number < len(known) and known[number] != _expected(known, position):
            raise PlanError(
                f"layer {position} of the output would have other shapes than its config says",
                expected=f"layers at their places: those of {base.name} differ in shape",
                found=f"layer {number}",
                fix="keep each layer where it is, or merge whole models",
            )


def _expected(known: Sequence[frozenset[str]], position: int) -> frozenset[str] | None:
    """The kind at a position; beyond the end, what the shortest pattern that the second half repeats goes on to.

    None where there is no such pattern: then nothing is known.
    """
    if position < len(known):
        return known[position]
    half = len(known) // 2
    for period in range(1, half + 1):
        if all(known[i] == known[i - period] for i in range(half, len(known))):
            return known[len(known) - period + (position - len(known)) % period]
    return None


def _example(build: frozenset[str], expected: frozenset[str]) -> str:
    extra, lacking = sorted(build - expected), sorted(expected - build)
    return extra[0] if extra else f"no {lacking[0]}"


def _length(slice_: SliceRecipe) -> int:
    start, stop = slice_.sources[0].layer_range or (0, 0)
    return stop - start


def _check_one_stack(layout: Layout) -> None:
    if len(large := layout.deep_stacks) > 1:
        raise PlanError(
            "a model with several stacks of layers cannot be sliced as a whole",
            found=", ".join(large),
            fix="use `modules:` and give each stack its slices",
        )


def _stack(source: SourceRecipe, layouts: Mapping[ModelRef, Layout]) -> str:
    stack = layouts[source.model].main_stack
    if stack is None:
        raise PlanError(f"{source.model} has no layers to slice")
    return stack


def _check_ranges(recipe: Recipe, slice_: SliceRecipe, layouts: Mapping[ModelRef, Layout]) -> None:
    for source in slice_.sources:
        count = len(layouts[source.model].stacks[_stack(source, layouts)])
        start, stop = source.layer_range or (0, 0)
        if stop > count:
            raise PlanError(
                f"layer_range [{start}, {stop}] leaves model {source.model}",
                expected=f"at most [0, {count}]",
                where=recipe.marks.where((*source.path, "layer_range")),
                model=str(source.model),
            )


def _layers(
    slice_: SliceRecipe,
    layouts: Mapping[ModelRef, Layout],
    checkpoints: Mapping[ModelRef, Checkpoint],
    target: str,
    offset: int,
) -> Iterator[Group]:
    count = _length(slice_)
    for i in range(count):
        members = []
        for source in slice_.sources:
            layout, stack = layouts[source.model], _stack(source, layouts)
            number = layout.stacks[stack][(source.layer_range or (0, 0))[0] + i]
            own = layout.layers.get((stack, number), {})
            names = {f"{target}.{offset + i}.{rest}": name for rest, name in own.items()}
            members.append(Member(checkpoints[source.model], names))
        yield Group(slice_, tuple(members), i / (count - 1) if count > 1 else 1.0, i)


def _outside(
    slice_: SliceRecipe,
    layouts: Mapping[ModelRef, Layout],
    checkpoints: Mapping[ModelRef, Checkpoint],
    *,
    before: bool,
    total: int,
) -> Group:
    """The tensors before or after the layers; layers beyond the config's count come after, numbered on from `total`."""
    members = []
    for source in slice_.sources:
        layout, stack = layouts[source.model], _stack(source, layouts)
        known = layout.stacks[stack]
        names = {}
        for name, place in layout.places.items():
            if place.stack != stack:
                if acts_before_layers(name) == before:
                    names[name] = name
            elif place.layer > known[-1] and not before:
                names[place.name(total + place.layer - known[-1] - 1)] = name
        members.append(Member(checkpoints[source.model], names))
    return Group(slice_, tuple(members), 0.0)
