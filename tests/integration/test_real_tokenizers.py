"""Tokenizers of six families as they are published: read, joined, written, and used."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import cuvee
from cuvee.errors import VocabularyError
from cuvee.tensors.location import Directory
from cuvee.vocab.output import unchanged, union, with_tokens
from cuvee.vocab.tokenizer import read_tokenizer
from support.real_tokenizers import real_homes
from support.vocabularies import ids_in, save_model, state_in

pytestmark = pytest.mark.real

FAST = ("qwen3", "llama2", "llama3", "deepseek", "minilm")
KINDS = {
    "qwen3": "byte-level BPE",
    "llama2": "SentencePiece BPE",
    "llama3": "byte-level BPE",
    "deepseek": "byte-level BPE",
    "minilm": "WordPiece",
    "mistral": "SentencePiece BPE",
    "j2": "Unigram",
}
TEXTS = (
    "The quick brown fox doesn't jump over 13 lazy dogs.",
    "def f(x):\n    return x ** 2  # square\n",
    "Größe naïve Übermut — “quoted”",
    "日本語のテキストと中文文本 🍷",
)
ALL = 1 << 30


@pytest.fixture(scope="module")
def homes() -> dict[str, Path]:
    return real_homes()


def read(homes: dict[str, Path], name: str) -> Any:
    return read_tokenizer(Directory(homes[name]), name)


@pytest.mark.parametrize("name", FAST)
def test_reading_agrees_with_the_library(name: str, homes: dict[str, Path]) -> None:
    found = read(homes, name)
    assert found.kind == KINDS[name]
    assert dict(found.ids) == ids_in(homes[name])


@pytest.mark.parametrize("name", ["mistral", "j2"])
def test_sentencepiece_files_are_converted(name: str, homes: dict[str, Path]) -> None:
    found = read(homes, name)
    assert (found.kind, found.is_slow) == (KINDS[name], True)
    assert len(found.ids) >= 32000


@pytest.mark.parametrize(("first", "second"), [("qwen3", "llama3"), ("llama3", "deepseek"), ("deepseek", "qwen3")])
def test_unions_of_published_tokenizers(first: str, second: str, homes: dict[str, Path]) -> None:
    base, other = read(homes, first), read(homes, second)
    output = union(unchanged(base, ALL), [(other, ALL)])
    joined = Tokenizer.from_str(output.text)
    ids = joined.get_vocab(with_added_tokens=True)
    assert ids == dict(output.ids)
    assert ids.keys() == base.ids.keys() | other.ids.keys()
    assert {token: ids[token] for token in base.ids} == dict(base.ids)
    for text in TEXTS:
        assert joined.decode(joined.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("name", FAST)
def test_a_few_special_tokens_leave_text_as_it_was(name: str, homes: dict[str, Path]) -> None:
    output = with_tokens(unchanged(read(homes, name), ALL), ["<|cuvee_a|>", "<|cuvee_b|>"], {})
    plain, joined = Tokenizer.from_file(str(homes[name] / "tokenizer.json")), Tokenizer.from_str(output.text)
    for text in TEXTS:
        assert joined.encode(text).ids == plain.encode(text).ids
    assert joined.encode("a <|cuvee_b|> b").tokens.count("<|cuvee_b|>") == 1


@pytest.mark.parametrize(("first", "second"), [("qwen3", "llama2"), ("llama2", "minilm")])
def test_kinds_that_differ_have_no_union(first: str, second: str, homes: dict[str, Path]) -> None:
    with pytest.raises(VocabularyError, match="have no union"):
        union(unchanged(read(homes, first), ALL), [(read(homes, second), ALL)])


def test_text_reaches_the_vectors_it_reached_before(homes: dict[str, Path], tmp_path: Path) -> None:
    """Qwen's tokens under Llama's tokenizer and under the union, embedding rows of eight numbers."""
    tokenizers = {n: Tokenizer.from_file(str(homes[n] / "tokenizer.json")) for n in ("qwen3", "llama3")}
    rows = {"qwen3": 152064, "llama3": 128256}
    models = {
        n: save_model(tmp_path / n, t, seed=i, rows=rows[n], tied=True) for i, (n, t) in enumerate(tokenizers.items())
    }
    table, own = state_in(models["qwen3"])["model.embed_tokens.weight"], ids_in(models["qwen3"])
    for source in ("union", "base"):
        listed = [{"model": str(models[n]), "parameters": {"weight": float(n == "qwen3")}} for n in models]
        recipe = {"merge_method": "linear", "models": listed, "tokenizer": {"source": source}}
        out = cuvee.merge({**recipe, "base_model": str(models["qwen3"])}, tmp_path / source).out
        merged = state_in(out)["model.embed_tokens.weight"]
        assert len(merged) == json.loads((out / "config.json").read_text())["vocab_size"]
        if source == "base":
            np.testing.assert_array_equal(merged, table)
            assert len(merged) == 152064, "the padding is kept: Qwen2.5 has as many rows"
        library = Tokenizer.from_file(str(out / "tokenizer.json"))
        for text in TEXTS:
            found = library.encode(text, add_special_tokens=False)
            for token, number in zip(found.tokens, found.ids, strict=True):
                if token in own:
                    np.testing.assert_array_equal(merged[number], table[own[token]])
        names = random.Random(1).sample(sorted(own), 500)
        ids = library.get_vocab(with_added_tokens=True)
        np.testing.assert_array_equal(merged[[ids[t] for t in names]], table[[own[t] for t in names]])
