"""Tokens as files list them, against the library that wrote the files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cuvee.tensors.location import Directory
from cuvee.vocab.listed import Listed, compare_lists, listed_tokens
from support.vocabularies import GRAPE, WINE


def listed(folder: Path) -> Listed | None:
    location = Directory(folder)
    return listed_tokens(location, location.sizes())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_of_sentencepiece_models(kind: str, tmp_path: Path) -> None:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WINE, GRAPE] * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        model_type=kind,
        minloglevel=9,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 70, "<s>": 99}')
    library = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    wanted = {library.id_to_piece(number): number for number in range(library.get_piece_size())}
    found = listed(tmp_path)
    assert found == Listed("tokenizer.model", {**wanted, "<pad>": 70})


def test_the_first_readable_file_counts(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\nwine\n##s\n")
    assert listed(tmp_path) == Listed("vocab.txt", {"[PAD]": 0, "wine": 1, "##s": 2})
    (tmp_path / "vocab.json").write_text('{"a": 1, "b": 0}')
    assert listed(tmp_path) == Listed("vocab.json", {"a": 1, "b": 0})


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),  # tiktoken's
        ("tokenizer.model", b"\x0a\x7f\x0a"),
        ("tokenizer.model", b"\xff" * 40),
        ("vocab.json", b"[1]"),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.txt", b"\xff"),
    ],
)
def test_what_cannot_be_read_is_no_list(file: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(data)
    assert listed(tmp_path) is None


def test_files_of_two_names_are_compared_where_both_list_an_id() -> None:
    slow, fast = Listed("spiece.model", {"a": 0, "b": 1}), Listed("tokenizer.json", {"a": 0, "b": 1, "<extra>": 2})
    found = compare_lists(slow, fast)
    assert found is not None
    assert found.equal
    other = compare_lists(slow, Listed("tokenizer.json", {"a": 0, "c": 1, "<extra>": 2}))
    assert other is not None
    assert (other.only_first, other.only_second) == (("b",), ("c",))
    same = compare_lists(fast, Listed("tokenizer.json", {"a": 0, "b": 1}))
    assert same is not None
    assert same.only_first == ("<extra>",)
    assert compare_lists(Listed("sentencepiece.bpe.model", {"a": 0}), fast) is None
