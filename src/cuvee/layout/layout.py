"""Stacks and layers of a checkpoint, gathered from its tensors' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cuvee.layout.facts import (
    EMBEDDINGS,
    HEADS,
    LANGUAGE_CONFIGS,
    LAYER_COUNT_KEYS,
    PER_LAYER_LISTS,
)
from cuvee.layout.names import Place, ends_with, place_of


@dataclass(frozen=True)
class Layout:
    """The layout of one checkpoint (or of one module of it).

    Attributes:
        places: tensor name -> place, in the checkpoint's order.

    """

    places: Mapping[str, Place]

    @cached_property
    def stacks(self) -> dict[str, list[int]]:
        """Layer numbers of every stack, ascending; the stack with most tensors first."""
        layers: dict[str, set[int]] = {}
        tensors: dict[str, int] = {}
        for place in self.places.values():
            if place.stack is not None:
                layers.setdefault(place.stack, set()).add(place.layer)
                tensors[place.stack] = tensors.get(place.stack, 0) + 1
        return {stack: sorted(layers[stack]) for stack in sorted(layers, key=lambda stack: -tensors[stack])}

    @cached_property
    def layers(self) -> dict[tuple[str, int], dict[str, str]]:
        """(stack, layer) -> the names of its tensors, by the name they have within the layer."""
        found: dict[tuple[str, int], dict[str, str]] = {}
        for name, place in self.places.items():
            if place.stack is not None:
                found.setdefault((place.stack, place.layer), {})[place.rest] = name
        return found

    @property
    def main_stack(self) -> str | None:
        """The stack that slices cut: the one with most tensors."""
        return next(iter(self.stacks), None)

    def position(self, name: str) -> float:
        """T of a tensor in [0, 1]: its layer's place in its stack; 0 outside layers, 1 in a stack of one layer."""
        place = self.places[name]
        if place.stack is None:
            return 0.0
        layers = self.stacks[place.stack]
        return 1.0 if len(layers) == 1 else layers.index(place.layer) / (len(layers) - 1)


def layout_of(names: Iterable[str]) -> Layout:
    """The layout of tensors with these names."""
    return Layout({name: place_of(name) for name in names})


def tied_embedding(names: Iterable[str], head: str) -> str | None:
    """The embedding that the absent `head` is tied to, if `head` is a head and there is one embedding."""
    if not ends_with(head, HEADS):
        return None
    found = [name for name in names if ends_with(name, EMBEDDINGS) and place_of(name).stack is None]
    return found[0] if len(found) == 1 else None


def layer_edits(config: Mapping[str, Any], before: int, kept: Sequence[int]) -> dict[tuple[str, ...], Any]:
    """What a model's config must say after its stack of `before` layers became the layers `kept` (positions, in order).

    The number of layers, wherever it stands, and every list that has one entry a layer (`layer_types`).
    """
    edits: dict[tuple[str, ...], Any] = {}
    parts: dict[tuple[str, ...], Any] = {(): config}
    parts.update({(key,): config[key] for key in LANGUAGE_CONFIGS if isinstance(config.get(key), dict)})
    for path, part in parts.items():
        for key, value in part.items():
            place = (*path, key)
            if key in LAYER_COUNT_KEYS and value == before:
                edits[place] = len(kept)
            elif isinstance(value, list) and len(value) == before and any(word in key for word in PER_LAYER_LISTS):
                edits[place] = [value[min(position, before - 1)] for position in kept]
    return edits
