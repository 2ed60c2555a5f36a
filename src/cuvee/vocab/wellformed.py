"""Whether JSON that calls itself a tokenizer has the parts, of the types, that everything here relies on.

Files come from strangers: a list where a table should be must end in a plain refusal. What tokens mean is not known
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

_MAX_ID = 1 << 30


def check_tokenizer(document: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Passes tokenizer.json and tokenizer_config.json whose parts are of the right types.

    Raises:
        ValueError: saying which part is not.

    """
    model = _typed(document.get("model"), Mapping, "model")
    vocabulary = _typed(model.get("vocab"), (Mapping, list), "model.vocab")
    if isinstance(vocabulary, list):
        for place, entry in enumerate(vocabulary):
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_number(entry[1])):
                raise ValueError(f"model.vocab[{place}] is no piece with a score")
    for place, entry in enumerate(_typed(document.get("added_tokens") or [], list, "added_tokens")):
        _check_added(entry, f"added_tokens[{place}]")
        _typed(entry.get("id"), int, f"added_tokens[{place}].id")
    listed = _typed(settings.get("added_tokens_decoder") or {}, Mapping, "added_tokens_decoder")
    for number, entry in listed.items():
        _check_added(entry, f"added_tokens_decoder[{number[:20]!r}]")


def check_ids(ids: Mapping[str, Any]) -> None:
    """Passes ids that rows can have.

    Raises:
        ValueError: naming a token whose id is none.

    """
    numbers = ids.values()
    if _all_are(numbers, int) and (not ids or 0 <= min(numbers) <= max(numbers) < _MAX_ID):
        return
    token = next(token for token, number in ids.items() if type(number) is not int or not 0 <= number < _MAX_ID)
    raise ValueError(f"token {token[:80]!r} has the id {str(ids[token])[:80]}")


def check_merges(merges: Any) -> None:
    """Passes the merges of a BPE model.

    Raises:
        ValueError: naming one that is no pair.

    """
    entries = _typed(merges, list, "model.merges")
    if _all_are(entries, list) and set(map(len, entries)) <= {2} and _all_are(chain.from_iterable(entries), str):
        return  # as newer files are written, and told without a look at each
    for place, entry in enumerate(entries):
        pair = entry.split(" ", 1) if isinstance(entry, str) else entry
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"model.merges[{place}] is no pair of tokens")


def _all_are(values: Iterable[Any], kind: type) -> bool:
    return set(map(type, values)) <= {kind}


def _check_added(entry: Any, name: str) -> None:
    _typed(_typed(entry, Mapping, name).get("content"), str, f"{name}.content")


def _typed(value: Any, kinds: type | tuple[type, ...], name: str) -> Any:
    if isinstance(value, kinds) and not isinstance(value, bool):
        return value
    expected: Iterable[type] = kinds if isinstance(kinds, tuple) else (kinds,)
    wanted = " or ".join({Mapping: "a table", list: "a list", int: "a number", str: "text"}[kind] for kind in expected)
    raise ValueError(f"{name} is {'missing' if value is None else type(value).__name__}, not {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
