"""Stacks and layers of a checkpoint, gathered from its tensors' names and its config's numbers of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cuvee.layout.counts import Count, counts_of
from cuvee.layout.names import Place, place_of

_TENSORS_IN_A_LAYER = 4  # a numbered group with fewer is a head or an adapter, not a stack of its own
_MOST_BEYOND = 4  # layers beyond the config's count that may be there to predict several tokens


@dataclass(frozen=True)
class Layout:
    """The layout of one checkpoint (or of one module of it).

    Attributes:
        places: tensor name -> place, in the checkpoint's order.
        counts: stack -> the config's entries that tell how many layers it has, where there are any.

    """

    places: Mapping[str, Place]
    counts: Mapping[str, tuple[Count, ...]]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many tensors every stack has; the largest stack first."""
        tensors: dict[str, int] = {}
        for place in self.places.values():
            if place.stack is not None:
                tensors[place.stack] = tensors.get(place.stack, 0) + 1
        return {stack: tensors[stack] for stack in sorted(tensors, key=lambda stack: -tensors[stack])}

    @cached_property
    def stacks(self) -> dict[str, list[int]]:
        """Layer numbers of every stack, ascending; the stack with most tensors first.

        Where the config says how many layers there are, numbers without tensors below that count too, and layers
        beyond it (for multi-token prediction) do not.
        """
        numbers: dict[str, set[int]] = {stack: set() for stack in self.sizes}
        for place in self.places.values():
            if place.stack is not None:
                numbers[place.stack].add(place.layer)
        return {stack: self._numbers(stack, found) for stack, found in numbers.items()}

    def _numbers(self, stack: str, found: set[int]) -> list[int]:
        if stack not in self.counts:
            return sorted(found)
        said = self.counts[stack][0].value
        beyond = sum(number >= said for number in found)
        if beyond > _MOST_BEYOND or beyond == len(found):
            return sorted(found)  # the entry must speak of something else
        return list(range(min(said, max(found) + 1)))

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
        return next(iter(self.sizes), None)

    @property
    def deep_stacks(self) -> list[str]:
        """The stacks that are layers of a model rather than a short sequence of numbered modules."""
        return [
            stack
            for stack, size in self.sizes.items()
            if len(self.stacks[stack]) > 1 and size >= _TENSORS_IN_A_LAYER * len(self.stacks[stack])
        ]

    def build(self, stack: str, layer: int) -> frozenset[str]:
        """What a layer is made of: the names its tensors have within it, numbers of experts and the like left out."""
        return frozenset(
            ".".join("#" if word.isdecimal() else word for word in rest.split("."))
            for rest in self.layers.get((stack, layer), ())
        )

    def position(self, name: str) -> float:
        """T of a tensor in [0, 1]: its layer's place in its stack; 0 outside layers, 1 in a stack of one layer."""
        place = self.places[name]
        if place.stack is None:
            return 0.0
        layers = self.stacks[place.stack]
        if len(layers) == 1 or place.layer > layers[-1]:
            return 1.0
        return layers.index(place.layer) / (len(layers) - 1)


def layout_of(names: Iterable[str], config: Mapping[str, Any] | None = None) -> Layout:
    """The layout of tensors with these names, in a model with this config."""
    places = {name: place_of(name) for name in names}
    layout = Layout(places, {})
    if not config:
        return layout
    stacks = {stack: (len(layout.stacks[stack]), size) for stack, size in layout.sizes.items()}
    deep = {s: (length, size) for s, (length, size) in stacks.items() if size >= _TENSORS_IN_A_LAYER * length}
    return Layout(places, counts_of(deep or stacks, config))
