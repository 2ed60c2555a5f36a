"""The output's tokenizer: one of the inputs', extended by the tokens of others and by tokens that a recipe adds.

Ids of the tokenizer it starts from never change; new tokens follow after its highest id: first the others' ordinary
tokens in the order of their ids, then their added ones, then the recipe's. Rows are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from cuvee.vocab.extend import extended_model, merges
from cuvee.vocab.json_text import without_collections
from cuvee.vocab.numbers import check_numbers, json_of
from cuvee.vocab.ordinary import ordinary_too
from cuvee.vocab.places import Places, known_places, places_in
from cuvee.vocab.spelling import check_same_spelling
from cuvee.vocab.tokenizer import Tokenizer, flags_of, without_merges

NEW_TOKEN = flags_of({"special": True, "normalized": False})
"""How a token that only a recipe names is looked for: as it is written, as a special token."""


@dataclass(frozen=True, eq=False)
class OutputTokenizer:
    """A tokenizer to be written.

    Attributes:
        start: the input tokenizer it starts from.
        ids: every token's id.
        added: the added tokens among them, with their flags.
        dropped: tokens of `start` that are left out, because its embedding ends before them.
        appended: how many ordinary tokens were appended.
        new_added: tokens that are added ones here and not in `start`.
        merges_of: the tokenizers that ordinary tokens were taken from.
        places: where vocabularies have their tokens here, as far as that was looked up.
        composed: tokenizer.json, once it is made.

    """

    start: Tokenizer
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    dropped: frozenset[str] = frozenset()
    appended: int = 0
    new_added: tuple[str, ...] = ()
    merges_of: tuple[Tokenizer, ...] = ()
    places: Places = ()
    composed: str | None = None

    @property
    def changed(self) -> bool:
        """Whether it is anything but `start` itself."""
        return bool(self.dropped or self.appended or self.new_added)

    @property
    def model_changed(self) -> bool:
        """Whether files that hold the ordinary vocabulary alone (a sentencepiece model) no longer hold."""
        return bool(self.appended or self.dropped & self.start.own.keys())

    @cached_property
    def document(self) -> dict[str, Any]:
        """tokenizer.json without its merges, checked to give every token the id it is meant to have.

        Raises:
            VocabularyError: if the tokenizers library reads it otherwise, or not at all.

        """
        model = extended_model(self.start, self.ids, self.added, self.dropped, self.merges_of)
        entries = [{"id": self.ids[token], "content": token, **flags} for token, flags in self.added.items()]
        entries.sort(key=lambda entry: int(entry["id"]))
        document = {**self.start.document, "model": model, "added_tokens": entries}
        check_numbers(document, self.ids, self.added, self.start.name)
        return document

    @property
    def text(self) -> str:
        """tokenizer.json.

        Raises:
            VocabularyError: if it holds what no file can.

        """
        if self.composed is not None:
            return self.composed
        model = dict(self.document["model"])
        with without_collections():
            if "merges" in model:
                model["merges"] = merges(self.start, model["vocab"], self.dropped, self.merges_of)
            return json_of({**self.document, "model": model}, self.start.name)

    def finished(self) -> OutputTokenizer:
        """The same with its text made, and without the tokenizers' merges, which nothing else needs; or itself.

        Raises:
            VocabularyError: if no tokenizer.json can be made.

        """
        if not self.changed:
            return self
        merges_of = tuple(map(without_merges, self.merges_of))
        return replace(self, start=without_merges(self.start), merges_of=merges_of, composed=self.text)


def unchanged(start: Tokenizer, rows: int | None) -> OutputTokenizer:
    """`start` as it is, less the tokens whose ids are not below `rows`."""
    if rows is None or start.size <= rows:
        own = np.fromiter(start.ids.values(), np.int32, len(start.ids))
        return OutputTokenizer(start, start.ids, start.added, places=((start.ids, own),))
    dropped = frozenset(token for token, number in start.ids.items() if number >= rows)
    ids = {token: number for token, number in start.ids.items() if token not in dropped}
    added = {token: flags for token, flags in start.added.items() if token not in dropped}
    return OutputTokenizer(start, ids, added, dropped)


def union(start: OutputTokenizer, others: Sequence[tuple[Tokenizer, int]]) -> OutputTokenizer:
    """`start` and every token of the others (each with its number of rows) that it lacks.

    Raises:
        VocabularyError: if tokens of the others would mean something else in `start`.

    """
    ids, added = dict(start.ids), dict(start.added)
    for other, _ in others:
        check_same_spelling(start.start, other)
    places = start.places
    for other, _ in others:
        if known_places(places, other.ids) is None:
            places = (*places, (other.ids, places_in(start.ids, other.ids)))
    ordinary = _ordinary(others, places)
    _append(ids, ordinary)
    specials: dict[str, Mapping[str, Any]] = {}
    for other, rows in others:
        for token, flags in other.added.items():
            if other.ids[token] < rows and (token not in ids or (flags["special"] and token not in added)):
                specials.setdefault(token, flags)
    new = [token for token in specials if token not in ids]
    _append(ids, new)
    return OutputTokenizer(
        start.start,
        ids,
        {**added, **specials},
        start.dropped - ids.keys(),
        len(ordinary),
        tuple(specials),
        tuple(other for other, _ in others) if ordinary else (),
        places,
    )


def with_tokens(
    start: OutputTokenizer, tokens: Iterable[str], flags: Mapping[str, Mapping[str, Any]]
) -> OutputTokenizer:
    """`start` and the tokens of a recipe that it lacks, as added tokens with the flags another model gives them."""
    new = [token for token in dict.fromkeys(tokens) if token not in start.ids]
    if not new:
        return start
    ids = dict(start.ids)
    _append(ids, new)
    added = {**start.added, **{token: flags.get(token, NEW_TOKEN) for token in new}}
    return OutputTokenizer(
        start.start,
        ids,
        added,
        start.dropped - ids.keys(),
        start.appended,
        (*start.new_added, *new),
        start.merges_of,
        start.places,
    )


def _ordinary(others: Sequence[tuple[Tokenizer, int]], places: Places) -> list[str]:
    """Tokens of the others that have no place yet, in the order of their ids; no added ones that are only that."""
    added = {token for other, _ in others for token in other.added.keys() - ordinary_too(other)}
    found: dict[str, None] = {}
    for vocabulary, known in places:
        rows = max((rows for other, rows in others if other.ids is vocabulary), default=0)
        new = compress(vocabulary.items(), (known < 0).tolist())
        found |= dict.fromkeys(token for token, number in new if number < rows and token not in added)
    return list(found)


def _append(ids: dict[str, int], tokens: Iterable[str]) -> None:
    following = max(ids.values(), default=-1) + 1
    ids.update((token, number) for number, token in enumerate(tokens, following))


@dataclass(frozen=True, eq=False)
class OutputVocabulary:
    """What becomes of the vocabulary.

    Attributes:
        tokenizer: the output's; None leaves the base's files as they are.
        rows: of the output's embedding, where the merge changes their number.
        template: the chat template to write; None leaves the tokenizer's own.
        base_ids: ids of the base's tokens, where special-token ids in its configs must follow them to a tokenizer that
            is not the base's, or has lost some of them.

    """

    tokenizer: OutputTokenizer | None = None
    rows: int | None = None
    template: str | None = None
    base_ids: Mapping[str, int] | None = None
