"""Which entries of a config count the layers of which stack, told by the words of their names.

`text_config.num_hidden_layers` speaks of `model.language_model.layers`, `encoder_layers` of `model.encoder.layers`, and
a plain `num_hidden_layers` of the stack that no other word describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.layout.configs import Path, parts, roles
from cuvee.layout.facts import LAYER_COUNT_KEYS, LAYER_LISTS


@dataclass(frozen=True, slots=True)
class Count:
    """An entry of a config that holds a number of layers."""

    path: Path
    value: int


def counts_of(stacks: Mapping[str, tuple[int, int]], config: Mapping[str, Any]) -> dict[str, tuple[Count, ...]]:
    """Stack -> the config entries that count its layers, the one to trust first.

    Args:
        stacks: stack -> (layers, tensors), of those that may be counted.
        config: config.json.

    """
    found: dict[str, list[tuple[_Fit, Count]]] = {}
    for path, part in parts(config):
        for key, value in _entries(part):
            count = Count((*path, key), value)
            fits = {stack: _fit(stack, count, *facts) for stack, facts in stacks.items()}
            if fitting := {stack: fit for stack, fit in fits.items() if fit is not None}:
                best = max(fitting, key=lambda stack: fitting[stack])
                found.setdefault(best, []).append((fitting[best], count))
    return {
        stack: tuple(count for _, count in sorted(entries, key=lambda entry: entry[0], reverse=True))
        for stack, entries in found.items()
    }


def _entries(part: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The keys of a part that count layers; failing those, the first list that has one entry a layer."""
    found = {key: part.get(key) for key in LAYER_COUNT_KEYS}
    counted = [(key, n) for key, n in found.items() if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    lists = [(key, len(part[key])) for key in LAYER_LISTS if isinstance(part.get(key), list) and part[key]]
    return counted or lists[:1]


_Fit = tuple[int, int, bool, int]


def _fit(stack: str, count: Count, layers: int, tensors: int) -> _Fit | None:
    """How well an entry fits a stack; None if it speaks of something else.

    In this order: words in common, words of the stack that the entry lacks (a decoder is the less likely to be meant by
    an entry that does not say so), the length, the stack's size.
    """
    mine, said = roles(stack), roles(".".join(count.path))
    other = {"vision", "audio"}
    unknown = said - mine - {"text"}
    if unknown == {"encoder"} and mine & said & other:
        unknown = frozenset()  # a tower that looks or listens is an encoder, whether or not its name says so
    if unknown or ("text" in said and mine & other and "text" not in mine):
        return None
    unsaid = sum(2 if word == "decoder" else 1 for word in mine - said - {"text"})
    return len(mine & said), -unsaid, layers == count.value, tensors
