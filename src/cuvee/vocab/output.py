"""The output's tokenizer: one of the inputs', extended by the tokens of others and by tokens that a recipe adds.

Ids of the tokenizer it starts from never change; new tokens follow after its highest id: first the others' ordinary
tokens in the order of their ids, then their added ones, then the recipe's. Rows are not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.vocab.extend import extended_model, merges
from cuvee.vocab.tokenizer import Tokenizer, flags_of

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

    """

    start: Tokenizer
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    dropped: frozenset[str] = frozenset()
    appended: int = 0
    new_added: tuple[str, ...] = ()
    merges_of: tuple[Tokenizer, ...] = ()

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
        _check_reads(document, self)
        return document

    @property
    def text(self) -> str:
        """tokenizer.json."""
        model = dict(self.document["model"])
        if "merges" in model:
            model["merges"] = merges(self.start, model["vocab"], self.merges_of)
        return json.dumps({**self.document, "model": model}, ensure_ascii=False)


def unchanged(start: Tokenizer, rows: int | None) -> OutputTokenizer:
    """`start` as it is, less the tokens whose ids are not below `rows`."""
    dropped = frozenset(token for token, number in start.ids.items() if rows is not None and number >= rows)
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
        _check_same_kind(start.start, other)
    ordinary = _ordinary(others, ids)
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
    )


def with_tokens(
    start: OutputTokenizer, tokens: Iterable[str], flags: Mapping[str, Mapping[str, Any]]
) -> OutputTokenizer:
    """`start` and the tokens of a recipe that it lacks, as added tokens with the flags another model gives them."""
    ids = dict(start.ids)
    new = [token for token in dict.fromkeys(tokens) if token not in ids]
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
    )


def _ordinary(others: Sequence[tuple[Tokenizer, int]], ids: Mapping[str, int]) -> list[str]:
    added = {token for other, _ in others for token in other.added}
    found: dict[str, None] = {}
    for other, rows in others:
        for token, number in sorted(other.own.items(), key=lambda item: item[1]):
            if token not in ids and token not in added and number < rows:
                found[token] = None
    return list(found)


def _append(ids: dict[str, int], tokens: Iterable[str]) -> None:
    following = max(ids.values(), default=-1) + 1
    ids.update((token, number) for number, token in enumerate(tokens, following))


def _check_same_kind(start: Tokenizer, other: Tokenizer) -> None:
    if start.own == other.own:
        return
    kinds = (start.kind, other.kind)
    prefixes = [tokenizer.document["model"].get("continuing_subword_prefix") or "" for tokenizer in (start, other)]
    if kinds[0] == kinds[1] and prefixes[0] == prefixes[1]:
        return
    raise VocabularyError(
        "these tokenizers have no union: the same text of a token means different things in them",
        expected=f"{kinds[0]}, as in {start.name}" + (f" with prefix {prefixes[0]!r}" if prefixes[0] else ""),
        found=f"{kinds[1]} in {other.name}" + (f" with prefix {prefixes[1]!r}" if prefixes[1] else ""),
        fix="write `tokenizer: {source: base}`, which keeps the base's tokenizer, or name the model to take it from",
    )


def _check_reads(document: Mapping[str, Any], output: OutputTokenizer) -> None:
    """A tokenizer that another program would number differently would be garbage: the library has the last word.

    A model's tokens have the ids that are written; those of added tokens are what the library makes of them.
    """
    from tokenizers import Tokenizer as Library

    name = output.start.name
    try:
        library = Library.from_str(json.dumps(document, ensure_ascii=False))
    except Exception as error:
        raise VocabularyError(
            f"the tokenizer made from that of {name} cannot be read", found=str(error)[:300], where="tokenizer.json"
        ) from error
    wrong = [token for token in output.added if library.token_to_id(token) != output.ids[token]]
    count = library.get_vocab_size(with_added_tokens=True)
    if wrong or count != len(output.ids):
        raise VocabularyError(
            f"the tokenizer made from that of {name} gives {len(wrong)} tokens other ids",
            expected=f"{len(output.ids)} tokens; " + ", ".join(f"{token!r} {output.ids[token]}" for token in wrong[:3]),
            found=f"{count} tokens; " + ", ".join(f"{token!r} {library.token_to_id(token)}" for token in wrong[:3]),
            fix="use `tokenizer: {source: base}`",
        )


@dataclass(frozen=True, eq=False)
class OutputVocabulary:
    """What becomes of the vocabulary.

    Attributes:
        tokenizer: the output's; None leaves the base's files as they are.
        rows: of the output's embedding, where the merge changes their number.
        template: the chat template to write; None leaves the tokenizer's own.
        base_ids: ids of the base's tokens, where special-token ids in its configs must follow them to a tokenizer that
            is not the base's.

    """

    tokenizer: OutputTokenizer | None = None
    rows: int | None = None
    template: str | None = None
    base_ids: Mapping[str, int] | None = None
