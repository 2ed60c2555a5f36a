"""Tensor names: the first number in a dotted name is the layer, what stands before it the stack.

Later numbers (experts, sub-layers) stay inside their layer. Shapes and configs are not looked at here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from cuvee.layout.facts import BEFORE_LAYERS, COUNTERS, DERIVED_BUFFERS, DERIVED_MASKS, HEADS, LAYER_NUMBERS

_MODULE_FOLDER = re.compile(r"(\d+_\w+)/[^/]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: in layer `layer` of `stack`, called `rest` there; `stack` is None outside all layers."""

    stack: str | None
    layer: int
    rest: str

    def name(self, layer: int | None = None) -> str:
        """The tensor's name, in another layer if one is given."""
        if self.stack is None:
            return self.rest
        return f"{self.stack}.{self.layer if layer is None else layer}.{self.rest}"


def place_of(name: str) -> Place:
    """Where the tensor called `name` stands."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal() and 0 < position < len(parts) - 1:
            return Place(".".join(parts[:position]), int(part), ".".join(parts[position + 1 :]))
    return Place(None, 0, name)


def folder_of(name: str) -> str | None:
    """The module folder of a sentence-transformers checkpoint that a tensor or file is in: `2_Dense`."""
    match = _MODULE_FOLDER.match(name)
    return match[1] if match else None


def ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Whether the last whole words of a dotted name are one of `endings`; one that starts with `^` is all of it."""
    whole, suffixes = _split(endings)
    return name in whole or name.endswith(suffixes)


@cache
def _split(endings: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The whole names and the suffixes that endings stand for."""
    return (
        frozenset(ending.removeprefix("^") for ending in endings),
        tuple("." + ending for ending in endings if ending[0] != "^"),
    )


def acts_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers acts before them (embeddings) rather than after (final norm, head)."""
    return not ends_with(name, HEADS) and any(part in name for part in BEFORE_LAYERS)


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a buffer that the model computes for itself, from its config or not at all."""
    return is_counter(name) or ends_with(name, DERIVED_BUFFERS) or (len(shape) == 4 and ends_with(name, DERIVED_MASKS))


def is_counter(name: str) -> bool:
    """Whether a tensor counts training steps, so that it differs between siblings and means nothing in a merge."""
    return ends_with(name, COUNTERS)


def stored_number(rest: str, layer: int) -> int | None:
    """What a layer's tensor holds if it is the layer's own number, in layer `layer`; None if it is something else."""
    first = LAYER_NUMBERS.get(rest.rpartition(".")[2])
    return None if first is None else first + layer
