"""Special-token ids in configs, brought from the tokenizer they were written for to another one.

Which files those configs are in is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_NAMES = re.compile(r"(_token_ids?|_token_index|_tokens_ids?)$")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids", "force_words_ids")
_TABLES = re.compile(r"_to_id$")
"""Whisper's: languages and tasks with the ids of their tokens."""
_PLACED = "forced_decoder_ids"
"""Pairs of a place in the text and an id, unlike all other lists."""
Path = tuple[str, ...]


def moved_ids(
    config: Mapping[str, Any], old: Mapping[str, int], new: Mapping[str, int], donor: Mapping[str, Any], kept: int = 0
) -> dict[Path, Any]:
    """What special-token ids in `config` become, by their paths; those that stay are left out.

    An id follows its token. Where the new vocabulary lacks the token, the donor's config is asked for the same key.

    Args:
        config: a config.json or generation_config.json.
        old: the ids of the tokenizer it was written for.
        new: the ids of the other one.
        donor: the same file of the model that the other one belongs to.
        kept: ids below it that name no token stay as they are.

    """
    follow = _followers(old, new, kept)
    found: dict[Path, Any] = {}
    for path, value in _special(config):
        moved = _placed(value, follow) if path[-1] == _PLACED else _moved(value, follow)
        if moved is None and value is not None:
            moved = _at(donor, path)
        if moved != value:
            found[path] = moved
    return found


def _special(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if _TABLES.search(key):
                yield from (((*path, key, entry), number) for entry, number in value.items())
            else:
                yield from _special(value, (*path, key))
        elif _NAMES.search(key) or key in _LISTS:
            yield (*path, key), value


def _followers(old: Mapping[str, int], new: Mapping[str, int], kept: int) -> Callable[[int], int | None]:
    """What tells an id's successor; None where it has none."""
    by_id = {number: token for token, number in old.items()}

    def follow(number: int) -> int | None:
        token = by_id.get(number)
        if token is None:
            return number if number < kept else None
        return new.get(token)

    return follow


def _moved(value: Any, follow: Callable[[int], int | None]) -> Any:
    """`value` with every id replaced; None if a single one has no successor; lists lose those that have none."""
    if isinstance(value, list):
        moved = [_moved(item, follow) for item in value]
        kept = [item for item, before in zip(moved, value, strict=True) if item is not None or before is None]
        return kept or (None if value else [])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value
    return follow(value)


def _placed(value: Any, follow: Callable[[int], int | None]) -> Any:
    """`value` with the second number of every pair replaced; pairs whose token is gone are left out."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return _moved(value, follow)
    moved = [[place, _moved(number, follow)] for place, number in value]
    kept = [pair for pair, (_, before) in zip(moved, value, strict=True) if pair[1] is not None or before is None]
    return kept or (None if value else [])


def _at(config: Any, path: Path) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
