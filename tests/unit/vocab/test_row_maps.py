"""Row maps against the rules, written out a second time token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import VocabularyError
from cuvee.vocab.rows import Holder, TokenRule, row_maps

LETTERS = "abcdefgh"


def rule_of(token: str, model: int, holders: list[Holder], base: int | None, rules: dict[str, TokenRule]) -> Any:
    """The rows that `model` takes for a token, as a set of (table, row)."""
    rule = rules.get(token)
    own = holders[model].ids.get(token, -1)
    own = own if 0 <= own < holders[model].rows else -1
    if rule and rule.usual:
        own = -1
    elif rule and (rule.force or own < 0):
        return set() if rule.holder is None else {(rule.holder, rule.row)}
    if own >= 0:
        return {(model, own)}
    having = {
        (number, holder.ids[token])
        for number, holder in enumerate(holders)
        if token in holder.ids and holder.ids[token] < holder.rows
    }
    if base is not None and any(number == base for number, _ in having):
        return {pair for pair in having if pair[0] == base}
    return having


vocabulary = st.lists(st.sampled_from(LETTERS), unique=True, min_size=1).flatmap(
    lambda tokens: st.integers(-2, 3).map(
        lambda extra: Holder("m", {token: i for i, token in enumerate(tokens)}, max(len(tokens) + extra, 1))
    )
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(vocabulary, min_size=1, max_size=4),
    st.data(),
)
def test_every_row_is_the_one_the_rules_name(holders: list[Holder], data: st.DataObject) -> None:
    base = data.draw(st.none() | st.integers(0, len(holders) - 1))
    present = sorted({t for h in holders for t, i in h.ids.items() if i < h.rows})
    rules = {
        token: data.draw(
            st.just(TokenRule(None, force=True))
            | st.just(TokenRule(None, force=True, usual=True) if token in present else TokenRule(None))
            | st.builds(TokenRule, st.integers(0, len(holders) - 1), st.integers(0, 5), st.booleans())
        )
        for token in data.draw(st.lists(st.sampled_from(LETTERS), unique=True, max_size=2))
    }
    tokens = [*present, *(token for token in rules if token not in present)]
    ids = {token: number for number, token in enumerate(data.draw(st.permutations(tokens)))}
    maps = row_maps(ids, holders, base=base, keeper=None, kept=0, rules=rules)
    assert maps.index.shape == (len(holders), len(holders), len(ids))
    for token, place in ids.items():
        for model in range(len(holders)):
            taken = {(table, int(row)) for table, row in enumerate(maps.index[model, :, place]) if row >= 0}
            assert taken == rule_of(token, model, holders, base, rules)


def test_padding_and_gaps_stay_the_keepers() -> None:
    """A base with tokens 0, 1 and 3 and six rows; a sibling with a token at 3 and 4; one that is short."""
    base = Holder("base", {"a": 0, "b": 1, "d": 3}, 6)
    sibling = Holder("sibling", {"a": 0, "b": 1, "x": 3, "y": 4}, 6)
    short = Holder("short", {"b": 0, "a": 1}, 3)
    maps = row_maps(base.ids, [base, sibling, short], base=0, keeper=0, kept=6, rules={}, multiple=8)
    assert (maps.tokens, maps.rows) == (6, 8)
    np.testing.assert_array_equal(maps.index[0, 0], [0, 1, 2, 3, 4, 5, -1, -1])
    assert (maps.index[0, 1:] == -1).all()
    np.testing.assert_array_equal(maps.index[1, 0], [-1, -1, -1, 3, 4, -1, -1, -1])
    np.testing.assert_array_equal(maps.index[1, 1], [0, 1, 2, -1, -1, 5, -1, -1])
    np.testing.assert_array_equal(maps.index[2, 0], [-1, -1, -1, 3, 4, 5, -1, -1])
    np.testing.assert_array_equal(maps.index[2, 2], [1, 0, 2, -1, -1, -1, -1, -1])
    tight = row_maps(base.ids, [base, sibling, short], base=0, keeper=0, kept=4, rules={})
    assert (tight.tokens, tight.rows) == (4, 4)


def test_a_token_that_nobody_has_is_refused() -> None:
    holders = [Holder("m", {"a": 0}, 1)]
    with pytest.raises(VocabularyError, match=r"1 tokens .* none of the models: 'n'") as caught:
        row_maps({"a": 0, "n": 1}, holders, base=None, keeper=None, kept=0, rules={})
    assert caught.value.tokens == ("n",)
    usual = {"n": TokenRule(None, force=True, usual=True)}
    with pytest.raises(VocabularyError, match="none of the models: 'n'"):
        row_maps({"a": 0, "n": 1}, holders, base=None, keeper=None, kept=0, rules=usual)
    zeros = row_maps({"a": 0, "n": 1}, holders, base=None, keeper=None, kept=0, rules={"n": TokenRule(None)})
    np.testing.assert_array_equal(zeros.index[0, 0], [0, -1])
