"""What users are told about unions whose tokens text never meets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Library

from cuvee.tensors.location import Directory
from cuvee.vocab.cautions import cautions
from cuvee.vocab.output import OutputTokenizer, unchanged, union
from cuvee.vocab.tokenizer import Tokenizer, read_tokenizer
from support.vocabularies import GRAPE, WINE, save_tokenizer, tokenizer

ALL = 1 << 30


def read(folder: Path, made: Library) -> Tokenizer:
    found = read_tokenizer(Directory(save_tokenizer(folder, made)), folder.name)
    assert found is not None
    return found


def joined(folder: Path, first: Library, second: Library) -> OutputTokenizer:
    return union(unchanged(read(folder / "first", first), ALL), [(read(folder / "second", second), ALL)])


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "byte-level BPE"])
def test_tokens_with_letters_that_the_base_never_keeps(kind: str, tmp_path: Path) -> None:
    """A base that makes all letters small, and a model that knows capitals."""
    small, cased = tokenizer(kind, WINE, 330), tokenizer(kind, "RIVER Rain RIVER Rain " + WINE, 360)
    small.normalizer = normalizers.Lowercase()
    output = joined(tmp_path, small, cased)
    new = output.ids.keys() - output.start.ids.keys()
    capitals = {token for token in new if any("A" <= letter <= "Z" for letter in token)}
    assert capitals
    (said,) = cautions(output)
    assert said.startswith(f"{len(capitals)} of {len(new)} tokens that the union brings from second are never found")
    assert "first (Lowercase)" in said
    library = Library.from_str(output.text)
    assert not capitals & set(library.encode("RIVER Rain RIVERS").tokens), "the library agrees"
    other = tokenizer(kind, GRAPE, 340)
    other.normalizer = normalizers.Lowercase()
    (said,) = cautions(joined(tmp_path / "turned", cased, other))
    assert said.startswith("the tokenizer of second makes all letters small, that of first does not")


def test_words_with_capitals_stay_unknown_where_the_base_keeps_them(tmp_path: Path) -> None:
    cased, small = tokenizer("WordLevel", "Wine", 10), tokenizer("WordLevel", "rain", 10)
    small.normalizer = normalizers.BertNormalizer(lowercase=True)
    output = joined(tmp_path, cased, small)
    assert len(cautions(output)) == 1
    assert Library.from_str(output.text).encode("Wine Rain rain").tokens == ["Wine", "<unk>", "rain"]
    small.normalizer = normalizers.BertNormalizer(lowercase=False)
    assert cautions(joined(tmp_path / "kept", cased, small)) == ()


def test_a_normalizer_that_all_share_is_not_spoken_of(tmp_path: Path) -> None:
    first, second = tokenizer("WordPiece", WINE, 300), tokenizer("WordPiece", "Rain " + GRAPE, 320)
    for each in (first, second):
        each.normalizer = normalizers.BertNormalizer(lowercase=True)
    assert cautions(joined(tmp_path, first, second)) == ()


def test_bytes_that_the_base_never_falls_back_to(tmp_path: Path) -> None:
    """The base's letters alone, and a model with byte tokens: unknown letters stay unknown."""
    made = tokenizer("SentencePiece BPE", GRAPE, 90)
    document = json.loads(tokenizer("SentencePiece BPE", WINE, 60).to_str())
    model = document["model"]
    model["byte_fallback"] = False
    model["vocab"] = {token: n for n, token in enumerate(t for t in model["vocab"] if not t.startswith("<0x"))}
    plain = Library.from_str(json.dumps(document))
    output = joined(tmp_path, plain, made)
    (said,) = cautions(output)
    assert said.startswith("256 tokens for single bytes that the union brings are never used")
    assert Library.from_str(output.text).encode("龍").tokens == ["<s>", "▁", "<unk>"]
    assert cautions(joined(tmp_path / "turned", made, plain)) == ()


@pytest.mark.parametrize(
    ("kind", "spaces"), [("SentencePiece BPE", True), ("Unigram", True), ("byte-level BPE", False)]
)
def test_added_tokens_that_part_a_text(kind: str, spaces: bool, tmp_path: Path) -> None:
    first, second = (tokenizer(kind, WINE, 330) for _ in range(2))
    second.add_tokens([AddedToken("<b>", normalized=False)])
    output = joined(tmp_path, first, second)
    said = cautions(output)
    library = Library.from_str(output.text)
    text = library.decode(library.encode("wine<b>rain").ids, skip_special_tokens=False)
    assert ("> rain" in text) is spaces, "the library does what is said"
    assert [line.split(",")[0] for line in said] == [
        "1 added tokens that are not special are found anywhere in a text"
    ] * spaces
    second.add_special_tokens([AddedToken("<c>", normalized=False)])
    assert len(cautions(joined(tmp_path / "special", first, second))) == spaces


def test_it_is_said_in_a_merge(tmp_path: Path) -> None:
    import cuvee
    from support.vocabularies import save_model

    small, cased = tokenizer("WordPiece", WINE, 300), tokenizer("WordPiece", "RIVER Rain", 300)
    small.normalizer = normalizers.Lowercase()
    homes = [save_model(tmp_path / name, made, seed=1) for name, made in (("small", small), ("cased", cased))]
    listed: list[Any] = [{"model": str(home), "parameters": {"weight": 1}} for home in homes]
    plan = cuvee.plan({"merge_method": "linear", "models": listed, "tokenizer": {"source": "union"}})
    assert any("are never found" in line for line in plan.warnings)
