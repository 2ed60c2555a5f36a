"""Tokenizer files with parts of the wrong type: each refused, naming the part; none crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Directory
from cuvee.vocab.output import unchanged, union, with_tokens
from cuvee.vocab.tokenizer import read_tokenizer
from support.vocabularies import GRAPE, WINE, save_tokenizer, tokenizer

BROKEN: list[tuple[str, Any, str]] = [
    ("model", [], "model is list, not a table"),
    ("model", None, "model is missing"),
    ("model.vocab", None, "model.vocab is missing"),
    ("model.vocab", "abc", "model.vocab is str"),
    ("model.vocab", {"a": "1"}, "token 'a' has the id 1"),
    ("model.vocab", {"a": 1.0}, "token 'a' has the id 1.0"),
    ("model.vocab", {"a": True}, "token 'a' has the id True"),
    ("model.vocab", {"a": [0]}, "token 'a' has the id"),
    ("model.vocab", {"a": -1}, "token 'a' has the id -1"),
    ("model.vocab", {"a": 1 << 40}, "token 'a' has the id 1099511627776"),
    ("model.vocab", {"a": 10**30}, "token 'a' has the id 1000"),
    ("model.vocab", [["a"]], r"model.vocab\[0\] is no piece"),
    ("model.vocab", [["a", 0.0], ["b", "c"]], r"model.vocab\[1\] is no piece"),
    ("model.vocab", [[["a"], 0.0]], r"model.vocab\[0\] is no piece"),
    ("added_tokens", {"a": 1}, "added_tokens is dict, not a list"),
    ("added_tokens", ["a"], r"added_tokens\[0\] is str"),
    ("added_tokens", [{"id": 1}], r"added_tokens\[0\].content is missing"),
    ("added_tokens", [{"id": 1, "content": ["a"]}], r"added_tokens\[0\].content is list"),
    ("added_tokens", [{"id": "1", "content": "a"}], r"added_tokens\[0\].id is str"),
    ("added_tokens", [{"id": -7, "content": "<new>"}], "token '<new>' has the id -7"),
    ("added_tokens", [{"id": 1 << 50, "content": "<new>"}], "token '<new>' has the id"),
]


def broken(folder: Path, path: str, value: Any, **settings: Any) -> Path:
    home = save_tokenizer(folder, tokenizer("byte-level BPE", WINE, 300, ["<|s|>"]), **settings)
    document = json.loads((home / "tokenizer.json").read_text())
    *before, last = path.split(".")
    part = document
    for key in before:
        part = part[key]
    part[last] = value
    (home / "tokenizer.json").write_text(json.dumps(document))
    return home


@pytest.mark.parametrize(("path", "value", "says"), BROKEN)
def test_a_part_of_the_wrong_type_is_named(path: str, value: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="is not a tokenizer") as caught:
        read_tokenizer(Directory(broken(tmp_path, path, value)), "m")
    caught.match(says)


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        ([], None),  # empty is as good as none
        (["a"], "added_tokens_decoder is list"),
        ({"x": {"content": "a"}}, "invalid literal"),
        ({"1": "a"}, "is str, not a table"),
        ({"1": {"content": 3}}, "content is int"),
        ({"-1": {"content": "<new>"}}, "has the id -1"),
    ],
)
def test_added_tokens_of_the_settings(decoder: Any, says: str | None, tmp_path: Path) -> None:
    home = save_tokenizer(tmp_path, tokenizer("byte-level BPE", WINE, 300), added_tokens_decoder=decoder)
    if says is None:
        assert read_tokenizer(Directory(home), "m") is not None
        return
    with pytest.raises(VocabularyError, match="is not a tokenizer") as caught:
        read_tokenizer(Directory(home), "m")
    caught.match(says)


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', '{"a": -3}', "nonsense", '{"a": null}', '{"a": {}}'])
def test_added_tokens_of_their_own_file(text: str, tmp_path: Path) -> None:
    home = save_tokenizer(tmp_path, tokenizer("byte-level BPE", WINE, 300))
    (home / "added_tokens.json").write_text(text)
    with pytest.raises(VocabularyError):
        read_tokenizer(Directory(home), "m")


@pytest.mark.parametrize("merges", [None, {}, "a b", [["a"]], [["a", "b", "c"]], ["ab"], [["a", 1]], [1], [None]])
def test_merges_of_the_wrong_type_are_refused_where_they_are_needed(merges: Any, tmp_path: Path) -> None:
    found = read_tokenizer(Directory(broken(tmp_path / "a", "model.merges", merges)), "m")
    good = read_tokenizer(Directory(save_tokenizer(tmp_path / "b", tokenizer("byte-level BPE", GRAPE, 320))), "n")
    assert found is not None
    assert good is not None
    for make in (
        lambda: with_tokens(unchanged(found, None), ["<new>"], {}),
        lambda: union(unchanged(good, None), [(found, 1 << 20)]),
    ):
        with pytest.raises(VocabularyError, match="merges of m"):
            _ = make().document


def test_a_hundred_megabytes_of_brackets_are_one_refusal(tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        home = save_tokenizer(tmp_path / file, tokenizer("byte-level BPE", WINE, 300))
        (home / file).write_bytes(b"[" * 100_000_000)
        with pytest.raises(VocabularyError, match=f"{file} of m is not JSON"):
            read_tokenizer(Directory(home), "m")
        (home / file).unlink()


def test_steps_nested_without_end_are_one_refusal_or_none(tmp_path: Path) -> None:
    step: dict[str, Any] = {"type": "ByteLevel"}
    for _ in range(150):
        step = {"type": "Sequence", "pretokenizers": [step]}
    found = read_tokenizer(Directory(broken(tmp_path / "a", "pre_tokenizer", step)), "m")
    assert found is not None
    assert found.kind == "byte-level BPE"
    for odd in (3, [3], {"pretokenizers": 3}, {"pretokenizers": [None, 3]}, {"decoders": {"a": 1}}):
        assert read_tokenizer(Directory(broken(tmp_path / "b", "pre_tokenizer", odd)), "m") is not None
