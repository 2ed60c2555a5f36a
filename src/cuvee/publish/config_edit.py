"""JSON text edited in place: what does not change keeps its bytes, whoever wrote it and whatever it says.

It finds the spans of values and replaces them; what the keys mean is not known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder
from typing import Any, Final

from cuvee.errors import CheckpointError


class _Remove:
    """The type of `REMOVE`."""

    def __repr__(self) -> str:
        return "REMOVE"


REMOVE: Final = _Remove()
"""As a change's value: the key goes."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = JSONDecoder()


@dataclass(frozen=True)
class _Member:
    """One `"key": value` of an object, by the offsets of its parts in the text."""

    key: str
    gap: int
    """Where the whitespace before the key starts."""
    start: int
    colon: int
    """Where the key ends."""
    value: int
    stop: int


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that `text` spells.

    Raises:
        CheckpointError: if it is not valid JSON, not an object, or an object in it names a key twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON: {error}", fix="repair the file or fetch it again") from None
    if not isinstance(found, dict):
        raise CheckpointError("not a JSON object", expected="{...}", found=type(found).__name__)
    return found


def edit_json(text: str, changes: Mapping[tuple[str, ...], object]) -> str:
    """The JSON object `text` with the values at some paths changed and every other byte as it was.

    Args:
        text: a JSON object.
        changes: path of keys -> new value, applied in order. A key that is missing becomes the last of its
            object (with its parents, where those are missing too); `REMOVE` deletes a key; a value equal to
            the one there changes nothing.

    Raises:
        CheckpointError: if `text` is not a JSON object or names a key twice, or a path leads through a value
            that is not an object.
    """
    parse_object(text)
    unit = _indentation(text)
    for path, value in changes.items():
        text = _edit(text, path, value, unit)
    return text


def _edit(text: str, path: tuple[str, ...], value: object, unit: str | None) -> str:
    *parents, key = path
    start = _skip(text, 0)
    for depth, parent in enumerate(parents):
        member = _find(text, start, parent)
        if member is None:
            if value is REMOVE:
                return text
            for inner in reversed(path[depth + 1 :]):
                value = {inner: value}
            return _append(text, start, parent, value, unit)
        start = member.value
        if text[start] != "{":
            raise CheckpointError(
                f"cannot set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is not an object",
                expected="a JSON object",
                found=text[start : member.stop][:40],
            )
    if value is REMOVE:
        return _remove(text, start, key)
    member = _find(text, start, key)
    if member is None:
        return _append(text, start, key, value, unit)
    # Spelled differently, 1.0 is 1 and "\u0061" is "a": a value that is right already keeps its spelling.
    if json.dumps(json.loads(text[member.value : member.stop])) == json.dumps(value):
        return text
    written = _write(value, text[member.gap : member.start], unit)
    return text[: member.value] + written + text[member.stop :]


def _append(text: str, start: int, key: str, value: object, unit: str | None) -> str:
    """`text` with a new last key in the object at `start`, spaced like the key before it."""
    members = list(_members(text, start))
    if not members:
        return f"{text[: start + 1]}{json.dumps(key)}: {_write(value, '', None)}{text[start + 1 :]}"
    last = members[-1]
    gap, between = text[last.gap : last.start], text[last.colon : last.value]
    if len(members) == 1 and not gap:
        gap = " " if between.endswith(" ") else ""  # an only key on the brace's line: as after a comma elsewhere
    addition = f",{gap}{json.dumps(key)}{between}{_write(value, gap, unit)}"
    return text[: last.stop] + addition + text[last.stop :]


def _remove(text: str, start: int, key: str) -> str:
    members = list(_members(text, start))
    place = next((number for number, member in enumerate(members) if member.key == key), None)
    if place is None:
        return text
    member = members[place]
    if place + 1 < len(members):
        return text[: member.start] + text[members[place + 1].start :]
    # The last key takes the comma before it along.
    cut = members[place - 1].stop if place else start + 1
    return text[:cut] + text[member.stop :]


def _write(value: object, gap: str, unit: str | None) -> str:
    """`value` as JSON; over several lines, indented to match, if its key stands on a line of its own."""
    if unit is None or "\n" not in gap:
        return json.dumps(value)
    line = ("\r\n" if "\r\n" in gap else "\n") + gap.rpartition("\n")[2]
    return json.dumps(value, indent=unit).replace("\n", line)


def _indentation(text: str) -> str | None:
    """What one level is indented by; None if the text does not put keys on lines of their own."""
    first = next(_members(text, _skip(text, 0)), None)
    if first is None or "\n" not in (gap := text[first.gap : first.start]):
        return None
    return gap.rpartition("\n")[2]


def _find(text: str, start: int, key: str) -> _Member | None:
    return next((member for member in _members(text, start) if member.key == key), None)


def _members(text: str, start: int) -> Iterator[_Member]:
    """The members of the object that opens at `start`; the text is known to be valid."""
    gap = start + 1
    while text[position := _skip(text, gap)] == '"':
        key, colon = _DECODER.raw_decode(text, position)
        value = _skip(text, _skip(text, colon) + 1)
        _, stop = _DECODER.raw_decode(text, value)
        yield _Member(key, gap, position, colon, value, stop)
        gap = _skip(text, stop) + 1
        if text[gap - 1] == "}":
            return


def _skip(text: str, position: int) -> int:
    """The first position from `position` on that is not whitespace."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise CheckpointError(f"not valid JSON: the key {key!r} is there twice", fix="remove one of the two")
        table[key] = value
    return table
