"""How two vocabularies differ: counts, first differences, special tokens, in data and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cuvee.vocab.tokenizer import Tokenizer

_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """Two vocabularies side by side.

    Attributes:
        shared: tokens in both.
        moved: shared tokens whose ids differ, as (token, id in the first, id in the second), by id.
        only_first: tokens that the second lacks, by id.
        only_second: tokens that the first lacks, by id.
        flags: shared added tokens that are looked for in other ways, or are added in one alone.

    """

    shared: int
    moved: tuple[tuple[str, int, int], ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every token has the same id in both."""
        return not (self.moved or self.only_first or self.only_second)

    def words(self, first: str, second: str) -> str:
        """The differences in a line, the two called by these names."""
        parts = []
        if self.only_first:
            parts.append(f"{_tokens(len(self.only_first))} only in {first} ({some(self.only_first)})")
        if self.only_second:
            parts.append(f"{_tokens(len(self.only_second))} only in {second} ({some(self.only_second)})")
        if self.moved:
            moved = [f"{token!r} {ours}/{theirs}" for token, ours, theirs in self.moved[:_SHOWN]]
            more = ", ..." if len(self.moved) > _SHOWN else ""
            parts.append(f"{_tokens(len(self.moved))} with another id ({', '.join(moved)}{more})")
        return "; ".join(parts) or "the same tokens with the same ids"


def compare(first: Mapping[str, int], second: Mapping[str, int]) -> Comparison:
    """The comparison of two vocabularies given as ids by token, flags left out."""
    moved = [(t, i, second[t]) for t, i in first.items() if t in second and second[t] != i]
    return Comparison(
        shared=sum(token in second for token in first),
        moved=tuple(sorted(moved, key=lambda entry: entry[1])),
        only_first=tuple(sorted((t for t in first if t not in second), key=first.__getitem__)),
        only_second=tuple(sorted((t for t in second if t not in first), key=second.__getitem__)),
        flags=(),
    )


def compare_tokenizers(first: Tokenizer, second: Tokenizer) -> Comparison:
    """The comparison of two tokenizers, flags of added tokens included."""
    found = compare(first.ids, second.ids)
    both = [token for token in {**first.added, **second.added} if token in first.ids and token in second.ids]
    flags = tuple(token for token in both if first.added.get(token) != second.added.get(token))
    return Comparison(found.shared, found.moved, found.only_first, found.only_second, flags)


def some(tokens: tuple[str, ...]) -> str:
    """The first few tokens, quoted."""
    return ", ".join(map(repr, tokens[:_SHOWN])) + (", ..." if len(tokens) > _SHOWN else "")


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
