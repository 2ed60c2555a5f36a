"""Which output tensors there are and which input tensors each is made of: names only, no shapes or parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cuvee.errors import PlanError
from cuvee.layout.facts import MODULES
from cuvee.layout.layout import Layout, acts_before_layers, layout_of, tied_embedding
from cuvee.recipe.schema import ModuleRecipe, Recipe, SliceRecipe
from cuvee.recipe.yaml_marks import Marks
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef

Checkpoints = Mapping[ModelRef, Checkpoint]
_MAX_INPUTS = 1 << 22  # about a gigabyte of plan, thirty times DeepSeek-V3's three models
_TENSORS_IN_A_LAYER = 4  # a numbered group with fewer is a head or an adapter, not a stack of its own


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output tensor: its name, the input tensor's name in each source of its slice, and its t."""

    name: str
    inputs: tuple[str, ...]
    module: ModuleRecipe
    slice_: SliceRecipe
    t: float


@dataclass(frozen=True)
class Outline:
    """All output tensors; and for each module that slices change, how many layers it had and which of them it gets."""

    tensors: tuple[Wanted, ...]
    layers: Mapping[str, tuple[int, tuple[int, ...]]]
    """Module name -> (layers before, positions of the layers of each slice's first source, in output order)."""


def outline(recipe: Recipe, checkpoints: Checkpoints) -> Outline:
    """What the recipe wants of these checkpoints.

    Raises:
        PlanError: if a layer range leaves its model, or tensors have no counterpart.

    """
    tensors: list[Wanted] = []
    layers: dict[str, tuple[int, tuple[int, ...]]] = {}
    names = tuple(module.name for module in recipe.modules)
    for module in recipe.modules:
        layouts = {
            source.model: _module_layout(checkpoints[source.model], module.name, names)
            for slice_ in module.slices
            for source in slice_.sources
        }
        if any(source.layer_range is not None for slice_ in module.slices for source in slice_.sources):
            tensors.extend(bounded(_sliced(module, layouts, checkpoints, recipe.marks)))
            first = layouts[module.slices[0].sources[0].model]
            before = len(first.stacks[first.main_stack]) if first.main_stack else 0
            kept = (i for slice_ in module.slices for i in range(*(slice_.sources[0].layer_range or (0, 0))))
            layers[module.name] = (before, tuple(kept))
        else:
            tensors.extend(bounded(_whole(module, module.slices[0], layouts, checkpoints)))
    return Outline(tuple(tensors), layers)


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


def _module_layout(checkpoint: Checkpoint, module: str, modules: Sequence[str]) -> Layout:
    """The layout of those tensors of a checkpoint that belong to one of the recipe's modules."""
    if len(modules) == 1 and MODULES.get(module, ()) is None:
        return layout_of(checkpoint.tensors)
    owner = {name: _owner(name, modules) for name in checkpoint.tensors}
    found = layout_of(name for name in checkpoint.tensors if owner[name] == module)
    if not found.places:
        raise PlanError(
            f"{checkpoint.name} has no module {module!r}",
            expected="a module whose tensors it holds; known names: " + ", ".join(MODULES),
            fix="use a module's name or the first part of its tensors' names",
        )
    if lost := [name for name in owner if owner[name] is None]:
        raise PlanError(
            f"{len(lost)} tensors of {checkpoint.name} belong to none of the recipe's modules",
            found=", ".join(lost[:3]),
            fix="list the other modules too, with the model to take them from",
            tensor=lost[0],
        )
    return found


def _owner(name: str, modules: Sequence[str]) -> str | None:
    """The recipe's module that a tensor belongs to: the one of the longest match, else the one that takes the rest."""
    best, length, rest = None, 0, None
    for module in modules:
        parts = MODULES.get(module, (module + ".",))
        if parts is None:
            rest = module
            continue
        for part in parts:
            if part in name and len(part) > length:
                best, length = module, len(part)
    return best or rest


def _whole(
    module: ModuleRecipe, slice_: SliceRecipe, layouts: Mapping[ModelRef, Layout], checkpoints: Checkpoints
) -> Iterator[Wanted]:
    """Every tensor of every model, matched by name."""
    models = [source.model for source in slice_.sources]
    names = dict.fromkeys(name for model in models for name in layouts[model].places)
    for name in names:
        found = [_counterpart(name, layouts[model], checkpoints[model]) for model in models]
        if None in found:
            raise _unmatched(names, models, layouts, checkpoints)
        holder = next(layouts[model] for model in models if name in layouts[model].places)
        yield Wanted(name, tuple(filter(None, found)), module, slice_, holder.position(name))


def _counterpart(name: str, layout: Layout, checkpoint: Checkpoint) -> str | None:
    """The tensor that plays the part of `name` in a checkpoint: itself, or the embedding its head is tied to."""
    if name in layout.places:
        return name
    tied = checkpoint.config.get("tie_word_embeddings", True)
    return tied_embedding(layout.places, name) if tied else None


def _unmatched(
    names: Mapping[str, None], models: Sequence[ModelRef], layouts: Mapping[ModelRef, Layout], checkpoints: Checkpoints
) -> PlanError:
    lacking = []
    for model in models:
        missing = [n for n in names if _counterpart(n, layouts[model], checkpoints[model]) is None]
        if missing:
            lacking.append(f"{checkpoints[model].name} lacks {len(missing)} of {len(names)} ({', '.join(missing[:3])})")
    return PlanError(
        "the models do not hold the same tensors",
        expected="every tensor in every model",
        found="; ".join(lacking),
        fix="merge checkpoints of one architecture, saved from the same model class",
    )


def _length(slice_: SliceRecipe) -> int:
    layer_range = slice_.sources[0].layer_range
    return layer_range[1] - layer_range[0] if layer_range else 0


def _sliced(
    module: ModuleRecipe, layouts: Mapping[ModelRef, Layout], checkpoints: Checkpoints, marks: Marks
) -> Iterator[Wanted]:
    """Layers of the slices, numbered through; tensors before them from the first slice, after them from the last."""
    for layout in layouts.values():
        _check_one_stack(layout)
    yield from _outside(module, module.slices[0], layouts, checkpoints, before=True)
    offset = 0
    for slice_ in module.slices:
        yield from _layers(module, slice_, layouts, offset, marks)
        offset += _length(slice_)
    yield from _outside(module, module.slices[-1], layouts, checkpoints, before=False)


def _check_one_stack(layout: Layout) -> None:
    stacks = list(layout.stacks)
    sizes = {stack: sum(place.stack == stack for place in layout.places.values()) for stack in stacks}
    large = [s for s in stacks if len(layout.stacks[s]) > 1 and sizes[s] >= _TENSORS_IN_A_LAYER * len(layout.stacks[s])]
    if len(large) > 1:
        raise PlanError(
            "a model with several stacks of layers cannot be sliced as a whole",
            found=", ".join(large),
            fix="use `modules:` and give each stack its slices",
        )


def _layers(
    module: ModuleRecipe, slice_: SliceRecipe, layouts: Mapping[ModelRef, Layout], offset: int, marks: Marks
) -> Iterator[Wanted]:
    picked: list[tuple[Layout, str, list[int]]] = []
    for source in slice_.sources:
        layout = layouts[source.model]
        stack = layout.main_stack
        if stack is None or source.layer_range is None:
            raise PlanError(
                f"{source.model} has no layers to slice" if stack is None else "a slice needs a layer_range"
            )
        start, stop = source.layer_range
        numbers = layout.stacks[stack]
        if stop > len(numbers):
            raise PlanError(
                f"layer_range [{start}, {stop}] leaves model {source.model}",
                expected=f"at most [0, {len(numbers)}]",
                where=marks.where((*source.path, "layer_range")),
                model=str(source.model),
            )
        picked.append((layout, stack, numbers[start:stop]))
    count = _length(slice_)
    for i in range(count):
        members = [layout.layers[stack, numbers[i]] for layout, stack, numbers in picked]
        t = i / (count - 1) if count > 1 else 1.0
        for rest in dict.fromkeys(rest for names in members for rest in names):
            if lacking := [str(s.model) for s, names in zip(slice_.sources, members, strict=True) if rest not in names]:
                raise PlanError(
                    "the slice's layers do not hold the same tensors",
                    found=f"layer {i} of the slice: {', '.join(lacking)} lacks {rest}",
                    where=marks.where(slice_.path),
                    fix="slice layers of the same kind, of models of one architecture",
                )
            name = f"{picked[0][1]}.{offset + i}.{rest}"
            yield Wanted(name, tuple(names[rest] for names in members), module, slice_, t)


def _outside(
    module: ModuleRecipe,
    slice_: SliceRecipe,
    layouts: Mapping[ModelRef, Layout],
    checkpoints: Checkpoints,
    *,
    before: bool,
) -> Iterator[Wanted]:
    models = [source.model for source in slice_.sources]
    own = [layouts[source.model] for source in slice_.sources]
    names = dict.fromkeys(
        name
        for layout in own
        for name, place in layout.places.items()
        if place.stack != layout.main_stack and acts_before_layers(name) == before
    )
    for name in names:
        found = [_counterpart(name, layouts[model], checkpoints[model]) for model in models]
        if None in found:
            raise PlanError(f"tensor {name!r} is missing from some of the slice's models", tensor=name)
        yield Wanted(name, tuple(filter(None, found)), module, slice_, 0.0)
