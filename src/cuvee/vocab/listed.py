"""Tokens and ids as a checkpoint's files list them, for comparisons that are worth no conversion.

What transformers would make of such files (further tokens, ids moved by an offset) is not known here, so lists out of
files of two names say something about the ids that both list, and about no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cuvee.tensors.location import Location
from cuvee.vocab.compare import Comparison, compare
from cuvee.vocab.json_text import parsed
from cuvee.vocab.tokenizer import ADDED
from cuvee.vocab.wellformed import check_ids

_MAX_BYTES = 64 << 20
_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
_OFFSET = "sentencepiece.bpe.model"
"""XLM-R's, whose ids are not the places of its pieces."""


@dataclass(frozen=True)
class Listed:
    """What one file of a checkpoint lists.

    Attributes:
        file: its name.
        ids: tokens with their ids, those of added_tokens.json among them.

    """

    file: str
    ids: Mapping[str, int]


def listed_tokens(location: Location, files: Mapping[str, int]) -> Listed | None:
    """The tokens that the first of a checkpoint's older tokenizer files lists; None if that cannot be read.

    tokenizer.json is read by `tokenizer`.
    """
    for file in _NAMES:
        if files.get(file, _MAX_BYTES + 1) <= _MAX_BYTES:
            try:
                ids = _ids(file, location.read(file, 0, files[file]))
                if ADDED in files:
                    more = parsed(location.read(ADDED, 0, files[ADDED]))
                    ids |= {token: number for token, number in more.items() if token not in ids}
                check_ids(ids)
            except (ValueError, AttributeError, TypeError, RecursionError):
                return None
            return Listed(file, ids)
    return None


def compare_lists(first: Listed, second: Listed) -> Comparison | None:
    """The comparison of two lists; for files of two names, over ids that both list; None where that means nothing."""
    if first.file == second.file:
        return compare(first.ids, second.ids)
    if _OFFSET in (first.file, second.file):
        return None
    common = set(first.ids.values()) & set(second.ids.values())
    ours, theirs = ({t: n for t, n in each.ids.items() if n in common} for each in (first, second))
    return compare(ours, theirs)


def _ids(file: str, data: bytes) -> dict[str, int]:
    if file == "vocab.json":
        return dict(parsed(data))
    tokens = data.decode().splitlines() if file == "vocab.txt" else list(_pieces(data))
    if not tokens:
        raise ValueError("no tokens")
    return {token: number for number, token in enumerate(tokens)}


def _pieces(data: bytes) -> Iterator[str]:
    """The pieces of a sentencepiece model: field 1 of each message that is field 1 of the whole.

    Raises:
        ValueError: if it is none.

    """
    for field, value in _fields(data):
        if field == 1:
            yield next((text.decode() for number, text in _fields(value) if number == 1), "")


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of a protocol buffer's fields; numbers' own bytes are left out."""
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        kind = tag & 7
        if kind == 0:
            _, place = _number(data, place)
            continue
        length, place = _number(data, place) if kind == 2 else ({1: 8, 5: 4}.get(kind, 0), place)
        if place + length > len(data) or (kind != 2 and not length):
            raise ValueError("no sentencepiece model")
        if kind == 2:
            yield tag >> 3, data[place : place + length]
        place += length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    found = shift = 0
    while place < len(data) and shift < 64:
        byte = data[place]
        found |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return found, place
    raise ValueError("no sentencepiece model")
