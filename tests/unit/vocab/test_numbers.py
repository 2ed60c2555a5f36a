"""The library asked about added tokens alone says what it says about the whole tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from cuvee.errors import VocabularyError
from cuvee.vocab.numbers import check_numbers

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TOKENS = [chr(0x61 + number) for number in range(12)]


def document(kind: str, vocabulary: dict[str, int], added: dict[str, int]) -> dict[str, Any]:
    model: dict[str, Any] = {"type": kind, "vocab": vocabulary, "unk_token": "a"}
    if kind == "BPE":
        model["merges"] = []
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    listed = [{"id": number, "content": token, **FLAGS} for token, number in sorted(added.items(), key=lambda e: e[1])]
    return {"version": "1.0", "added_tokens": listed, "model": model}


@st.composite
def tokenizers(draw: Any) -> tuple[str, dict[str, int], dict[str, int]]:
    """Models with gaps in their ids, and added tokens inside and outside, mostly where the library puts them."""
    names = draw(st.permutations(TOKENS))
    inside = draw(st.integers(1, 8))
    numbers = draw(st.lists(st.integers(0, inside + 4), min_size=inside, max_size=inside, unique=True))
    vocabulary = dict(zip(names, numbers, strict=False))
    chosen = draw(st.sets(st.sampled_from(TOKENS), max_size=6))
    added: dict[str, int] = {}
    following = max(inside, *(vocabulary[token] + 1 for token in chosen if token in vocabulary), 0)
    for token in sorted(chosen):
        if token in vocabulary:
            added[token] = vocabulary[token]
        else:
            added[token] = following + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1]))
            following += 1
    return draw(st.sampled_from(["BPE", "WordPiece", "WordLevel"])), vocabulary, added


@settings(max_examples=400, deadline=None)
@given(tokenizers())
def test_the_verdict_is_that_on_the_whole_tokenizer(drawn: tuple[str, dict[str, int], dict[str, int]]) -> None:
    kind, vocabulary, added = drawn
    whole = document(kind, vocabulary, added)
    found = Library.from_str(json.dumps(whole)).get_vocab(with_added_tokens=True)
    wanted = {**vocabulary, **added}
    if {token: found[token] for token in added} == added:
        check_numbers(whole, wanted, dict.fromkeys(added, FLAGS), "m")
        return
    with pytest.raises(VocabularyError, match="other ids") as caught:
        check_numbers(whole, wanted, dict.fromkeys(added, FLAGS), "m")
    wrong = next(token for token in added if found[token] != added[token])
    assert f"{wrong!r} {found[wrong]}" in str(caught.value.found)


def test_a_tokenizer_that_no_program_can_read_is_refused() -> None:
    broken = document("BPE", {"a": 0}, {}) | {"normalizer": {"type": "Nonsense"}}
    with pytest.raises(VocabularyError, match="cannot be read"):
        check_numbers(broken, {"a": 0}, {}, "m")
    halved = document("BPE", {"a": 0, "b\ud800": 1}, {"b\ud800": 1})
    with pytest.raises(VocabularyError, match="cannot be written"):
        check_numbers(halved, {"a": 0, "b\ud800": 1}, {"b\ud800": FLAGS}, "m")
