"""What a config must say after a stack of layers was cut and put together anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.layout.configs import Path, parts, roles
from cuvee.layout.facts import (
    DECODER_COUNTS,
    LAYER_INDEX_LISTS,
    LEADING_LAYER_COUNTS,
    PER_LAYER_LISTS,
    PER_LAYER_STRINGS,
    REPEATED_PATTERNS,
)
from cuvee.layout.layout import Layout

Edits = dict[Path, Any]


def layer_edits(config: Mapping[str, Any], layout: Layout, stack: str, kept: Sequence[int]) -> Edits:
    """Config path -> new value, after the layers of `stack` became those at positions `kept`, in this order.

    The number of layers, wherever it stands, and in the same part of the config every list or string with one entry a
    layer, every list of layer numbers, and every count of leading layers.

    Args:
        config: the model's config.json.
        layout: the model's layout.
        stack: the stack that was cut.
        kept: positions in the stack, with repetitions.

    """
    before = len(layout.stacks[stack])
    edits: Edits = {count.path: len(kept) for count in layout.counts.get(stack, ()) if count.value == before}
    homes = {path[:-1] for path in edits}
    edits |= _decoder_counts(layout, stack, len(kept))
    for path, part in parts(config):
        if path not in homes:
            continue
        for key, value in part.items():
            new = _value_after(key, value, before, kept)
            if new is not None and (roles(key) - {"text"}) <= roles(stack):
                place = (*path, key)
                edits[place] = new
    return edits


def _value_after(key: str, value: Any, before: int, kept: Sequence[int]) -> Any:
    """What a value becomes; None if it does not follow the layers."""
    if isinstance(value, list):
        if key in REPEATED_PATTERNS:
            return _pattern_after(value, before, kept)
        if key in LAYER_INDEX_LISTS and _is_indices(value, before):
            return [position for position, layer in enumerate(kept) if layer in value]
        if len(value) >= before > 0 and any(word in key for word in PER_LAYER_LISTS):
            return [value[position] for position in kept] + value[before:] if len(value) - before <= 1 else None
    if isinstance(value, str) and key in PER_LAYER_STRINGS and len(value) == before:
        return "".join(value[position] for position in kept)
    if key in LEADING_LAYER_COUNTS and isinstance(value, int) and 0 < value < before:
        leading = next((i for i, layer in enumerate(kept) if layer >= value), len(kept))
        return leading if all(layer >= value for layer in kept[leading:]) else None
    return None


def _is_indices(value: list[Any], before: int) -> bool:
    return all(isinstance(index, int) and 0 <= index < before for index in value)


def _pattern_after(value: list[Any], before: int, kept: Sequence[int]) -> Any:
    """`[[["global", "local"], 12]]`, kinds and how often they repeat, written out for the layers kept."""
    kinds = [kind for names, times in value for _ in range(times) for kind in names]
    return [[[kinds[position] for position in kept], 1]] if len(kinds) == before else None


def _decoder_counts(layout: Layout, stack: str, after: int) -> Edits:
    """Old configs of encoder-decoder models count both stacks in one entry; cut apart, the decoder needs its own."""
    decoder = next((s for s in layout.deep_stacks if "decoder" in roles(s)), None)
    if decoder is None or decoder in layout.counts:
        return {}
    shared = [count for counts in layout.counts.values() for count in counts if count.path[-1] in DECODER_COUNTS]
    length = after if stack == decoder else len(layout.stacks[decoder])
    return {(*count.path[:-1], DECODER_COUNTS[count.path[-1]]): length for count in shared}
