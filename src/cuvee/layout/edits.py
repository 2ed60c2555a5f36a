"""What a config must say after a stack of layers was cut and put together anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.errors import PlanError
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


def layer_edits(
    config: Mapping[str, Any],
    layout: Layout,
    stack: str,
    kept: Sequence[int],
    origins: Sequence[Mapping[str, Any]] | None = None,
) -> Edits:
    """Config path -> new value, after the layers of `stack` became those at positions `kept`, in this order.

    The number of layers, wherever it stands, and in the same part of the config every list or string with one entry a
    layer, every list of layer numbers, and every count of leading layers.

    Args:
        config: the model's config.json.
        layout: the model's layout.
        stack: the stack that was cut.
        kept: positions in the stack, with repetitions.
        origins: for each of them, the config of the model that it comes from; None if all are of this one.

    Raises:
        PlanError: if the config can only say how many layers of a kind come first, and one would come later.

    """
    before = len(layout.stacks[stack])
    edits: Edits = {count.path: len(kept) for count in layout.counts.get(stack, ()) if count.value == before}
    homes = {path[:-1] for path in edits}
    edits |= _decoder_counts(layout, stack, len(kept))
    for path, part in parts(config):
        if path not in homes:
            continue
        from_ = [_part(origin, path) for origin in origins or [config] * len(kept)]
        for key, value in part.items():
            own = [theirs.get(key, value) for theirs in from_]
            new = _value_after(key, value, before, list(zip(kept, own, strict=True)))
            if new is not None and (roles(key) - {"text"}) <= roles(stack):
                place = (*path, key)
                edits[place] = new
    return edits


_Kept = Sequence[tuple[int, Any]]
"""For every layer its position in the model that it comes from, and what that model's config has at the same place."""


def _part(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    return next((part for found, part in parts(config) if found == path), {})


def _value_after(key: str, value: Any, before: int, kept: _Kept) -> Any:
    """What a value becomes; None if it does not follow the layers."""
    if isinstance(value, list):
        if key in REPEATED_PATTERNS and len(_written_out(value)) == before:
            return [[[_entry(_written_out(own), layer) for layer, own in kept], 1]]
        if key in LAYER_INDEX_LISTS and _is_indices(value, before):
            return [position for position, (layer, own) in enumerate(kept) if layer in own]
        if 0 <= len(value) - before <= 1 and any(word in key for word in PER_LAYER_LISTS):
            return [_entry(own, layer) for layer, own in kept] + value[before:]
    if isinstance(value, str) and key in PER_LAYER_STRINGS and len(value) == before:
        return "".join(_entry(own, layer) for layer, own in kept)
    if key in LEADING_LAYER_COUNTS and isinstance(value, int) and 0 < value < before:
        return _leading(key, kept)
    return None


def _entry(values: Any, layer: int) -> Any:
    """What a list or string says of a layer; of layers beyond its end what it says of the last."""
    return values[min(layer, len(values) - 1)]


def _is_indices(value: list[Any], before: int) -> bool:
    return all(isinstance(index, int) and 0 <= index < before for index in value)


def _written_out(pattern: list[Any]) -> list[Any]:
    """`[[["global", "local"], 12]]`, kinds and how often they repeat, as one entry a layer."""
    return [kind for names, times in pattern for _ in range(times) for kind in names]


def _leading(key: str, kept: _Kept) -> int:
    """How many of the layers are of the first kind; all of them must come first."""
    first: list[bool] = [bool(layer < own) for layer, own in kept]
    count = sum(first)
    if not all(first[:count]):
        raise PlanError(
            f"layer {first.index(True, first.index(False))} of the output would be of a kind that only comes first",
            expected=f"the kind that `{key}` counts at the start alone: the config can say nothing else",
            fix="put those layers first, or leave them out",
        )
    return count


def _decoder_counts(layout: Layout, stack: str, after: int) -> Edits:
    """Old configs of encoder-decoder models count both stacks in one entry; cut apart, the decoder needs its own."""
    decoder = next((s for s in layout.deep_stacks if "decoder" in roles(s)), None)
    if decoder is None or decoder in layout.counts:
        return {}
    shared = [count for counts in layout.counts.values() for count in counts if count.path[-1] in DECODER_COUNTS]
    length = after if stack == decoder else len(layout.stacks[decoder])
    return {(*count.path[:-1], DECODER_COUNTS[count.path[-1]]): length for count in shared}
