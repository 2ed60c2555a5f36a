"""Unions of two different published tokenizers of each kind, merged by the command line and used as users would."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from cuvee.errors import VocabularyError
from cuvee.vocab.output import unchanged, union
from cuvee.vocab.spelling import ids_as_spelt_by
from cuvee.vocab.tokenizer import Tokenizer
from support.real_tokenizers import read_real, real_homes, save_real
from support.vocabularies import ids_in, state_in

pytestmark = pytest.mark.real

PAIRS = {
    ("qwen3", "llama3"): 170359,
    ("gpt2", "qwen3"): 159669,
    ("llama2", "gemma3"): 262833,
    ("gemma3", "mistral3"): 263601,
    ("mistral", "mistral3"): 32768,
    ("j2", "t5_test"): 262148,
    ("t5_test", "j2"): 262148,
    ("minilm", "oromo_wordpiece"): 78266,
    ("rxnfp", "minilm"): 31073,
}
"""Pairs, base first, and how many tokens they have together."""
SAID = {
    ("llama2", "gemma3"): ["6312 added tokens that are not special are found anywhere"],
    ("t5_test", "j2"): ["256 tokens for single bytes that the union brings are never used"],
    ("rxnfp", "minilm"): ["makes all letters small"],
    ("minilm", "rxnfp"): ["520 of 551 tokens that the union brings from"],
}
ORDINARY = {"gemma3": "\n\t▁", "j2": ",()"}
"""Letters of those added tokens that a model makes by itself."""
TEXTS = (
    "The quick brown fox doesn't jump over 13 lazy dogs.",
    "def f(x):\n    return x ** 2  # square\n\n\n\tnext",
    "Größe naïve Übermut — “quoted”",
    "日本語のテキストと中文文本 🍷 नमस्ते мир",
    "akkaataa barnootaa Oromiyaa",
    "[Na+].CCO>>c1ccccc1Br",
)
ALL = 1 << 30
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@cache
def home(name: str) -> Path:
    return real_homes()[name]


@cache
def read(name: str) -> Tokenizer:
    """Conversion of the larger ones takes many seconds."""
    return read_real(home(name))


def merged(folder: Path, first: str, second: str, source: str) -> tuple[Path, dict[str, Path], str]:
    """What the command line makes of two models: embeddings of the first alone, heads of the second alone."""
    models = {name: save_real(folder / name, home(name), read(name), seed) for seed, name in enumerate((first, second))}
    weights = {
        first: [{"filter": "lm_head", "value": 0}, {"value": 1}],
        second: [{"filter": "lm_head", "value": 1}, {"value": 0}],
    }
    recipe = {
        "merge_method": "linear",
        "base_model": str(models[first]),
        "models": [{"model": str(path), "parameters": {"weight": weights[name]}} for name, path in models.items()],
        "parameters": {"normalize": False},
        "tokenizer": {"source": source},
        "dtype": "float32",
    }
    (folder / "recipe.yml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "cuvee", "merge", str(folder / "recipe.yml"), str(folder / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder / "out", models, run.stdout + run.stderr


def assert_rows(out: Path, models: dict[str, Path], ids: dict[str, int]) -> None:
    """Every token's row: of embeddings, the first's or else the only holder's; of heads, the second's or the base's."""
    (first, ours), (second, theirs) = ((path, dict(read(name).ids)) for name, path in models.items())
    state, mine, other = state_in(out), state_in(first), state_in(second)
    assert len(state[EMBED]) == len(state[HEAD]) == json.loads((out / "config.json").read_text())["vocab_size"]
    for key, tables in ((EMBED, ((ours, mine), (theirs, other))), (HEAD, ((theirs, other), (ours, mine)))):
        (own, table), (rest, fallback) = tables
        exact = np.stack([table[key][own[t]] if t in own else fallback[key][rest[t]] for t in ids])
        np.testing.assert_array_equal(state[key][list(ids.values())], exact)


def assert_flags(out: Path, first: Tokenizer, second: Tokenizer) -> None:
    """The base's added tokens have its flags, the other's theirs; what both cut by itself is an ordinary token."""
    written = {
        entry.pop("content"): entry for entry in json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    }
    flags = {token: {k: v for k, v in entry.items() if k != "id"} for token, entry in written.items()}
    assert {token: flags[token] for token in first.added} == dict(first.added)
    for token, wanted in second.added.items():
        if token in flags:
            assert token in first.added or flags[token] == wanted
        else:
            assert not wanted["special"]
            assert token in first.ids or set(token) <= set(ORDINARY[second.name])


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_unions(first: str, second: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out, models, said = merged(tmp_path, first, second, "union")
    library = Library.from_file(str(out / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    ids = library.get_vocab(with_added_tokens=True)
    base, other = read(first), read(second)
    assert len(ids) == PAIRS[first, second]
    assert ids.keys() == base.ids.keys() | other.ids.keys()
    assert {token: ids[token] for token in base.ids} == dict(base.ids)
    assert_rows(out, models, ids)
    assert_flags(out, base, other)
    for words in SAID.get((first, second), []):
        assert words in said.replace("\n", " ")

    auto = AutoTokenizer.from_pretrained(out)
    assert auto.get_vocab() == ids
    plain = Library.from_str(json.dumps(base.document))
    plain.no_padding()
    plain.no_truncation()
    table, source = state_in(out)[EMBED], state_in(models[first])[EMBED]
    seen = 0
    for text in TEXTS:
        found, before = (each.encode(text, add_special_tokens=False) for each in (library, plain))
        assert auto.encode(text, add_special_tokens=False) == found.ids
        for token, number in zip(found.tokens, found.ids, strict=True):
            if token in base.ids:  # the same vectors as by the base's tokenizer
                np.testing.assert_array_equal(table[number], source[base.ids[token]])
                seen += 1
        unknown = base.document["model"].get("unk_token") or "<unk>"
        if first != "t5_test" and unknown not in before.tokens and unknown not in found.tokens:
            assert library.decode(found.ids) == plain.decode(before.ids), "no text is read otherwise"
    assert seen > 12


def test_what_a_base_of_small_letters_never_finds_is_said(tmp_path: Path) -> None:
    _, _, said = merged(tmp_path, "minilm", "rxnfp", "union")
    assert all(words in said.replace("\n", " ") for words in SAID["minilm", "rxnfp"])


def test_base_keeps_files_and_moves_the_others_rows(tmp_path: Path) -> None:
    """Mistral's first and third: 31,997 tokens with other ids."""
    out, models, _ = merged(tmp_path, "mistral", "mistral3", "base")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (models["mistral"] / name).read_bytes()
    assert not (out / "tokenizer.json").exists()
    assert_rows(out, models, dict(read("mistral").ids))


def test_numbers_that_agree_and_tokens_that_do_not(tmp_path: Path) -> None:
    """Mistral's third and a model with as many rows around its first: rows by number, and the count of wrong ones."""
    import cuvee

    models = [save_real(tmp_path / name, home(name), read("mistral3"), 1) for name in ("mistral", "mistral3")]
    listed = [{"model": str(path), "parameters": {"weight": 1}} for path in models]
    plan = cuvee.plan({"merge_method": "linear", "models": listed})
    assert any("differ in 32765 tokens" in line and "'[TOOL_CALLS]'" in line for line in plan.warnings)
    twin = save_real(tmp_path / "llama2", home("llama2"), read("mistral3"), 1)  # the same tokens, as tokenizer.json
    listed[1]["model"] = str(twin)
    assert not any("differ" in line for line in cuvee.plan({"merge_method": "linear", "models": listed}).warnings)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("qwen3", "llama2", "byte-level BPE, as in qwen3"),
        ("llama2", "minilm", "WordPiece in minilm"),
        ("j2", "oromo_unigram", "spaces written as nothing in oromo_unigram"),
    ],
)
def test_what_has_no_union(first: str, second: str, says: str) -> None:
    with pytest.raises(VocabularyError, match="have no union") as caught:
        union(unchanged(read(first), ALL), [(read(second), ALL)])
    assert says in str(caught.value)


@pytest.mark.parametrize(("first", "second", "pairs"), [
    ("j2", "oromo_unigram", {"akka": "akka"}),
    ("qwen3", "llama2", {"Ġthe": "▁the", "Ã¼": "ü", "Ċ": "<0x0A>"}),
    ("llama3", "minilm", {"Ġwine": "wine", "ing": "##ing"}),
])  # fmt: skip
def test_base_matches_what_tokens_stand_for(first: str, second: str, pairs: dict[str, str]) -> None:
    ids: Any = ids_as_spelt_by(read(first), read(second))
    assert {token: ids[token] for token in pairs} == {token: read(second).ids[same] for token, same in pairs.items()}


def test_a_new_token_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    """Only special tokens are added: tokenizer.model stays, and says with its list what tokenizer.json says."""
    from transformers import AutoTokenizer

    import cuvee

    model = save_real(tmp_path / "mistral", home("mistral"), read("mistral"), 1)
    listed = [{"model": str(model), "parameters": {"weight": 1}}]
    settings = {"source": "base", "tokens": {"<|im_start|>": {"source": {"kind": "zero"}}}}
    out = cuvee.merge({"merge_method": "linear", "models": listed, "tokenizer": settings}, tmp_path / "out").out
    assert (out / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]["32000"]["special"]
    whole, plain = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(model)
    assert whole.get_vocab() == ids_in(out) == {**plain.get_vocab(), "<|im_start|>": 32000}
    (out / "tokenizer.json").unlink()
    assert AutoTokenizer.from_pretrained(out).get_vocab() == whole.get_vocab()
    for text in TEXTS:
        assert whole.encode(text) == plain.encode(text)
