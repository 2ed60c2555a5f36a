"""Which row of which model every row of an output vocabulary takes, by mergekit's rules.

For each model an output row is the model's own row for the token; where it lacks the token the base's, else the mean
of all models that have it (the only one's, if it is one). Rules for single tokens stand before that. Maps are arrays
over all tokens at once; how rows are read is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.errors import VocabularyError
from cuvee.tensors.rowmaps import ABSENT
from cuvee.vocab.places import Index, places_in


@dataclass(frozen=True)
class Holder:
    """A model as rows see it.

    Attributes:
        name: what messages call it.
        ids: its tokens' ids.
        rows: how many rows its embedding has.
        places: the output's ids of these tokens, as far as they were looked up already (see `places_in`).

    """

    name: str
    ids: Mapping[str, int]
    rows: int
    places: Index | None = None

    def row(self, token: str) -> int | None:
        """The row of a token; None if the model lacks it, or its embedding ends before."""
        number = self.ids.get(token)
        return number if number is not None and 0 <= number < self.rows else None


@dataclass(frozen=True)
class TokenRule:
    """A token's row, where a model lacks it or (`force`) in every model.

    That of `holder`, or zeros if None; with `usual` what the ordinary rules give to models that lack the token.
    """

    holder: int | None
    row: int = 0
    force: bool = False
    usual: bool = False


@dataclass(frozen=True)
class RowMaps:
    """The answer.

    Attributes:
        index: `[models, tables, rows]`: for each model, which row of each model's table an output row takes; several
            tables mean their mean, none zeros.
        tokens: rows before the padding that takes the mean row.

    """

    index: Index
    tokens: int

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return int(self.index.shape[2])


def row_maps(
    ids: Mapping[str, int],
    holders: Sequence[Holder],
    *,
    base: int | None,
    keeper: int | None,
    kept: int,
    rules: Mapping[str, TokenRule],
    multiple: int = 1,
) -> RowMaps:
    """The rows of every model for an output vocabulary.

    Args:
        ids: the output's tokens and their ids.
        holders: the models.
        base: which of them is the base.
        keeper: which of them keeps rows that have no token (padding and gaps); None if its rows are not at hand.
        kept: how many of its rows it keeps at least.
        rules: for single tokens.
        multiple: what the number of rows is a multiple of; rows added for that take the mean row.

    Raises:
        VocabularyError: if no model has a row for a token, and no rule gives it one.

    """
    names = list(ids)
    positions = np.fromiter(ids.values(), np.int64, len(names))
    tokens = int(positions.max(initial=-1)) + 1
    if keeper is not None:
        tokens = max(tokens, min(kept, holders[keeper].rows))
    size = -(-tokens // multiple) * multiple
    own = np.full((len(holders), size), ABSENT, np.int32)
    for holder, row in zip(holders, own, strict=True):
        places = positions if holder.ids is ids else places_in(ids, holder.ids, holder.places)
        found = places >= 0
        row[places[found]] = np.fromiter(holder.ids.values(), np.int32, len(holder.ids))[found]
        row[row >= holder.rows] = ABSENT
    has_token = np.zeros(size, bool)
    has_token[positions] = True
    fallback = _fallback(own, base)
    if keeper is not None:
        _keep_padding(own, fallback, has_token, holders, keeper)
    index = np.repeat(fallback[None], len(holders), axis=0)
    for number, row in enumerate(own):
        has = row >= 0
        index[number][:, has] = ABSENT
        index[number, number, has] = row[has]
    _apply(rules, ids, own, fallback, index)
    _check(index, names, positions, rules)
    return RowMaps(index, tokens)


def _fallback(own: Index, base: int | None) -> Index:
    """`[tables, rows]`: what a model that lacks a token takes."""
    fallback: Index = own.copy()
    if base is not None:
        has = own[base] >= 0
        others = np.arange(len(own)) != base
        fallback[np.ix_(others, has)] = ABSENT
    return fallback


def _keep_padding(
    own: Index, fallback: Index, has_token: np.ndarray[Any, Any], holders: Sequence[Holder], keeper: int
) -> None:
    """Gives rows without a token the keeper's row, or a model's own where that has no token either."""
    places = np.arange(has_token.size, dtype=np.int32)
    padding = ~has_token & (places < holders[keeper].rows)
    if not padding.any():
        return
    fallback[:, padding] = ABSENT
    fallback[keeper, padding] = places[padding]
    for holder, row in zip(holders, own, strict=True):
        taken = np.zeros(has_token.size, bool)
        used = np.fromiter(holder.ids.values(), np.int64, len(holder.ids))
        taken[used[(used >= 0) & (used < taken.size)]] = True
        free = padding & ~taken & (places < holder.rows)
        row[free] = places[free]


def _apply(rules: Mapping[str, TokenRule], ids: Mapping[str, int], own: Index, fallback: Index, index: Index) -> None:
    for token, rule in rules.items():
        place = ids[token]
        for number in range(len(own)):
            if rule.force or own[number, place] < 0:
                index[number, :, place] = fallback[:, place] if rule.usual else ABSENT
                if rule.holder is not None:
                    index[number, rule.holder, place] = rule.row


def _check(index: Index, names: Sequence[str], positions: Any, rules: Mapping[str, TokenRule]) -> None:
    nobody = (index.max(axis=1) < 0).any(axis=0)[positions]
    given = {token for token, rule in rules.items() if not rule.usual}
    lost = [names[number] for number in np.flatnonzero(nobody).tolist() if names[number] not in given]
    if lost:
        raise VocabularyError(
            f"{len(lost)} tokens of the output have a row in none of the models: {', '.join(map(repr, lost[:5]))}",
            expected="every token in at least one model's embedding",
            fix="give each a source: `tokenizer: {tokens: {TOKEN: {source: ...}}}`",
            tokens=tuple(lost),
        )
