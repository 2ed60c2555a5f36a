"""Special-token ids in configs, brought from the tokenizer they were written for to another one.

Which files those configs are in is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = re.compile(r"(_token_ids?|_token_index|_tokens_ids?)$")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids", "force_words_ids")
Path = tuple[str, ...]


def moved_ids(
    config: Mapping[str, Any], old: Mapping[str, int], new: Mapping[str, int], donor: Mapping[str, Any]
) -> dict[Path, Any]:
    """What special-token ids in `config` become, by their paths; those that stay are left out.

    An id follows its token. Where the new vocabulary lacks the token, the donor's config is asked for the same key.

    Args:
        config: a config.json or generation_config.json.
        old: the ids of the tokenizer it was written for.
        new: the ids of the other one.
        donor: the same file of the model that the other one belongs to.

    """
    by_id = {number: token for token, number in old.items()}
    found: dict[Path, Any] = {}
    for path, value in _special(config):
        moved = _moved(value, by_id, new)
        if moved is None and value is not None:
            moved = _at(donor, path)
        if moved != value:
            found[path] = moved
    return found


def _special(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _special(value, (*path, key))
        elif _NAMES.search(key) or key in _LISTS:
            yield (*path, key), value


def _moved(value: Any, by_id: Mapping[int, str], new: Mapping[str, int]) -> Any:
    """`value` with every id replaced; None if a single one has no successor; lists lose those that have none."""
    if isinstance(value, list):
        moved = [_moved(item, by_id, new) for item in value]
        kept = [item for item, before in zip(moved, value, strict=True) if item is not None or before is None]
        return kept or (None if value else [])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value
    token = by_id.get(value)
    return new.get(token) if token is not None else None


def _at(config: Any, path: Path) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
