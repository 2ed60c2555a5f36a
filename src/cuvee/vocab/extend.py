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
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.vocab.tokenizer import Tokenizer

_FAR_BELOW = 10_000.0
"""More than any word's pieces score together."""


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
    inside = set(start.own) - dropped
    if others:
        inside |= set(ids)
    own = {token: number for token, number in ids.items() if token in inside}
    if isinstance(model["vocab"], list):
        model["vocab"] = _pieces(start, own, added, others)
        return model
    model["vocab"] = own
    if "merges" in model:
        model["merges"] = []
    return model


def merges(start: Tokenizer, own: Mapping[str, int], others: Sequence[Tokenizer]) -> list[Any]:
    """The merges of `start` and then the others', those whose pieces and result are among the tokens `own`."""
    written: Sequence[Any] = start.document["model"]["merges"]
    pairs = dict.fromkeys(_pairs(written))
    for other in others:
        pairs.update(dict.fromkeys(_pairs(other.document["model"].get("merges") or ())))
    kept = [pair for pair in pairs if pair[0] in own and pair[1] in own and pair[0] + pair[1] in own]
    if any(isinstance(entry, str) for entry in written[:1]) and not any(" " in part for pair in kept for part in pair):
        return [" ".join(pair) for pair in kept]
    return [list(pair) for pair in kept]


def _pairs(written: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for entry in written:
        first, second = entry.split(" ", 1) if isinstance(entry, str) else entry
        yield first, second


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
