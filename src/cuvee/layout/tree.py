"""A checkpoint's layout as a tree to look at: stacks with layers of equal build folded, and what stands around them.

Plain data; how it is drawn is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cuvee.layout.configs import ties_embeddings
from cuvee.layout.layout import Layout, layout_of
from cuvee.layout.names import acts_before_layers, is_derived
from cuvee.layout.ties import input_embedding, is_head, missing_head
from cuvee.layout.vocabulary import vocabulary_axes
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.sources import Source


@dataclass(frozen=True)
class Row:
    """Tensors of one name but for the numbers in it: `experts.0-7.up.weight`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers:
    """Layers that are built alike: `0, 4-6` of their stack."""

    numbers: str
    count: int
    rows: tuple[Row, ...]
    note: str | None = None


@dataclass(frozen=True)
class Stack:
    """A stack of layers, and the config entries that count them."""

    name: str
    layers: int
    counted_by: tuple[str, ...]
    groups: tuple[Layers, ...]


@dataclass(frozen=True)
class Tree:
    """All of a checkpoint."""

    name: str
    architectures: tuple[str, ...]
    parameters: int
    dtypes: tuple[str, ...]
    before: tuple[Row, ...]
    stacks: tuple[Stack, ...]
    after: tuple[Row, ...]


def tree_of(checkpoint: Checkpoint) -> Tree:
    """The layout of a checkpoint as a tree."""
    layout = layout_of(checkpoint.tensors, checkpoint.config)
    tensors = checkpoint.tensors
    notes = _notes(checkpoint)
    deep = [s for s in layout.sizes if s in layout.counts or s in layout.deep_stacks]
    first = list(dict.fromkeys(place.stack for place in layout.places.values()))
    outside = [name for name, place in layout.places.items() if place.stack not in deep]
    return Tree(
        name=checkpoint.name,
        architectures=tuple(map(str, checkpoint.config.get("architectures") or ())),
        parameters=sum(math.prod(source.shape) for source in tensors.values()),
        dtypes=tuple(dict.fromkeys(source.dtype for source in tensors.values())),
        before=_rows([n for n in outside if acts_before_layers(n)], tensors, notes),
        stacks=tuple(_stack(stack, layout, tensors, notes) for stack in sorted(deep, key=first.index)),
        after=_rows([n for n in outside if not acts_before_layers(n)], tensors, notes),
    )


def _notes(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """What is worth saying of single tensors."""
    shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
    axes = vocabulary_axes(shapes, checkpoint.config)
    notes: dict[str, list[str]] = {name: [f"vocabulary on axis {axis}"] for name, axis in axes.items()}
    embedding = input_embedding(shapes)
    if embedding and not any(map(is_head, shapes)):
        if head := missing_head(shapes, checkpoint.config):
            notes.setdefault(embedding, []).append(f"stands for {head}, which is not stored")
        elif ties_embeddings(checkpoint.config):
            notes.setdefault(embedding, []).append("tied: the head, if there is one, is this tensor")
    for name, shape in shapes.items():
        if is_derived(name, shape):
            notes.setdefault(name, []).append("computed, not learned")
    return {name: tuple(said) for name, said in notes.items()}


def _stack(stack: str, layout: Layout, tensors: Mapping[str, Source], notes: Mapping[str, tuple[str, ...]]) -> Stack:
    alike: dict[tuple[Row, ...], list[int]] = {}
    known = set(layout.stacks[stack])
    numbers = sorted(known | {layer for owner, layer in layout.layers if owner == stack})
    for number in numbers:
        names = layout.layers.get((stack, number), {})
        inside = {rest: tensors[name] for rest, name in names.items()}
        said = {rest: notes[name] for rest, name in names.items() if name in notes}
        alike.setdefault(_rows(list(inside), inside, said), []).append(number)
    groups = [
        Layers(ranges(found), len(found), rows, None if set(found) <= known else "beyond the config's count")
        for rows, found in alike.items()
    ]
    counted = tuple(f"{'.'.join(count.path)}: {count.value}" for count in layout.counts.get(stack, ()))
    return Stack(stack, len(known), counted, tuple(groups))


def _rows(names: Sequence[str], tensors: Mapping[str, Source], notes: Mapping[str, tuple[str, ...]]) -> tuple[Row, ...]:
    """Rows for tensors, those that differ in numbers alone folded into one."""
    folded: dict[tuple[str, tuple[int, ...], str, tuple[str, ...]], list[str]] = {}
    for name in names:
        pattern = ".".join("#" if word.isdecimal() else word for word in name.split("."))
        key = (pattern, tensors[name].shape, tensors[name].dtype, notes.get(name, ()))
        folded.setdefault(key, []).append(name)
    return tuple(
        Row(_common(found), shape, dtype, len(found), said) for (_, shape, dtype, said), found in folded.items()
    )


def _common(names: Sequence[str]) -> str:
    """Names that differ in numbers alone as one: `experts.0-7.up.weight`."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(words[0] if len(set(words)) == 1 else ranges(map(int, set(words))) for words in columns)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: `0-2,5,7-9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
