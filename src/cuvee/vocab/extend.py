"""The model part of a tokenizer.json with more tokens, for each kind of model.

- BPE: the others' merges follow after the own ones, so that text is first cut as it was, and pieces then join further.
- Unigram: new pieces score below every sum of the old ones, so that they are used only where the old ones cannot spell
  a text; among themselves they keep the other model's order.
- WordPiece and WordLevel: longest match finds new tokens by itself.

Where tokens are appended, added tokens are listed in the model too: libraries number what a model lacks after its last
token, and would otherwise renumber them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, filterfalse
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.vocab.tokenizer import Tokenizer
from cuvee.vocab.wellformed import check_merges

_FAR_BELOW = 10_000.0
"""More than any word's pieces score together."""
_Pair = tuple[str, ...]


def extended_model(
    start: Tokenizer,
    ids: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
    dropped: frozenset[str],
    others: Sequence[Tokenizer],
) -> dict[str, Any]:
    """The `model` of tokenizer.json for the tokens `ids`; its merges, if it has them, are left empty.

    Args:
        start: the tokenizer to extend.
        ids: all tokens of the result.
        added: the added tokens among them.
        dropped: tokens of `start` to leave out.
        others: where further ordinary tokens come from; empty if there are none.

    Raises:
        VocabularyError: if the model's kind cannot hold such tokens.

    """
    model = dict(start.document["model"])
    own: Mapping[str, int] = start.own
    if others:
        own = ids
    elif dropped:
        own = {token: number for token, number in start.own.items() if token not in dropped}
    if isinstance(model["vocab"], list):
        model["vocab"] = _pieces(start, own, added, others)
        return model
    model["vocab"] = own
    if "merges" in model:
        for tokenizer in {id(each.document): each for each in (start, *others)}.values():
            _check_merges(tokenizer)
        model["merges"] = []
    return model


def _check_merges(tokenizer: Tokenizer) -> None:
    try:
        check_merges(tokenizer.document["model"].get("merges"))
    except ValueError as error:
        raise VocabularyError(
            f"the merges of {tokenizer.name} are none",
            found=str(error),
            where=tokenizer.name,
            checkpoint=tokenizer.name,
        ) from error


def merges(start: Tokenizer, own: Mapping[str, int], dropped: frozenset[str], others: Sequence[Tokenizer]) -> list[Any]:
    """The merges of `start` and then the others', those whose pieces and result are among the tokens `own`."""
    written: list[Any] = start.document["model"]["merges"]
    prefix = len(start.document["model"].get("continuing_subword_prefix") or "")
    spaced = bool(written) and isinstance(written[0], str)
    pairs = list(_pairs(written))
    if dropped:
        pairs = list(_within(pairs, own, prefix))
    seen = set(pairs) if others else set()
    for other in others:
        if other.document is not start.document:
            # First what is cheaply told: most merges of two large vocabularies are the same.
            theirs = list(filterfalse(seen.__contains__, _pairs(other.document["model"].get("merges") or [])))
            new = dict.fromkeys(_within(theirs, own, prefix))
            seen.update(new)
            pairs += new
    if spaced and not any(" " in part for pair in pairs for part in pair):
        return [" ".join(pair) for pair in pairs]
    return pairs


def _within(pairs: Sequence[_Pair], own: Mapping[str, int], prefix: int) -> Iterator[_Pair]:
    """Those whose pieces and result are among the tokens `own`: told for all at once, as there are many."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    joined = map(str.__add__, first, (text[prefix:] for text in second) if prefix else second)
    has = own.__contains__
    return compress(pairs, map(all, zip(map(has, first), map(has, second), map(has, joined), strict=True)))


def _pairs(written: list[Any]) -> Iterator[_Pair]:
    if str in set(map(type, written)):
        return (tuple(entry.split(" ", 1)) if isinstance(entry, str) else tuple(entry) for entry in written)
    return map(tuple, written)


def _pieces(
    start: Tokenizer, own: Mapping[str, int], added: Mapping[str, Mapping[str, Any]], others: Sequence[Tokenizer]
) -> list[list[Any]]:
    """A Unigram model's pieces with their scores; a piece's place is its id."""
    scores = dict(start.document["model"]["vocab"])
    floor = min(scores.values(), default=0.0) - _FAR_BELOW
    for other in others:
        for piece, score in other.document["model"]["vocab"]:
            scores.setdefault(piece, floor + min(float(score), 0.0))
    ordered = sorted(own, key=lambda token: own[token])
    if [own[token] for token in ordered] != list(range(len(ordered))):
        raise VocabularyError(
            f"the Unigram tokenizer of {start.name} cannot take more tokens: its ids have gaps",
            fix="write `tokenizer: {source: base}`",
        )
    return [[token, scores.get(token, 0.0 if token in added else floor)] for token in ordered]
