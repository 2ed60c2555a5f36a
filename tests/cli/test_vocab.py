from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.vocabularies import WINE, save_model, save_tokenizer, tokenizer


def test_two_vocabularies_side_by_side(cuvee: Any, here: Path) -> None:
    a = tokenizer("byte-level BPE", WINE, 300, ["<|a|>", "<|s|>"])
    b = tokenizer("byte-level BPE", WINE, 300, ["<|s|>", "<|b|>"])
    size = a.get_vocab_size()
    save_model(here / "a", a, seed=1, rows=size + 6, eos_token="<|s|>", chat_template="{{ 1 }}")
    save_tokenizer(here / "b", b, eos_token="<|b|>")
    shown = cuvee("vocab", "a", "b")
    assert shown.code == 0
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    for line in (
        "tokenizer byte-level BPE byte-level BPE",
        f"tokens {size} {size}",
        "of them added 2 2",
        f"highest id {size - 1} {size - 1}",
        f"embedding rows {size + 6} -",
        f"vocab_size in config {size + 6} -",
        f"eos_token '<|s|>' {size - 1} '<|b|>' {size - 1}",
        "chat template {{ 1 }} (7 characters) -",
        f"shared tokens {size - 1}",
        "of them with another id 1",
        f"'<|s|>' {size - 1} / {size - 2}",
        "only in a: 1",
        "'<|a|>'",
        "only in b: 1",
        "'<|b|>'",
    ):
        assert line in lines, shown.out
    told = json.loads(cuvee("vocab", "a", "b", "--json").out)
    assert told["comparison"]["only_first"] == ["<|a|>"]
    assert told["comparison"]["moved"] == [["<|s|>", size - 1, size - 2]]
    assert told["first"]["rows"] == size + 6


def test_equal_vocabularies_need_no_setting(cuvee: Any, here: Path) -> None:
    made = tokenizer("WordPiece", WINE, 60)
    for name in "ab":
        save_model(here / name, made, seed=1)
    assert "merge without a tokenizer setting" in cuvee("vocab", "a", "b").out


def test_a_model_without_a_tokenizer_is_refused(cuvee: Any, here: Path) -> None:
    (here / "a").mkdir()
    done = cuvee("vocab", "a", "a")
    assert done.code == 2
    assert "a has no tokenizer" in done.err


def test_folders_of_early_sentence_transformers_are_read(cuvee: Any, here: Path) -> None:
    made = tokenizer("WordPiece", WINE, 60)
    save_model(here / "b" / "0_Transformer", made, seed=1)
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (here / "b" / "modules.json").write_text(json.dumps(modules))
    save_model(here / "a", made, seed=1)
    assert "merge without a tokenizer setting" in cuvee("vocab", "a", "b").out


def test_one_kind_whose_tokens_mean_other_things_is_advised_against_a_union(cuvee: Any, here: Path) -> None:
    made = tokenizer("Unigram", WINE, 60)
    save_tokenizer(here / "a", made)
    document = json.loads(made.to_str()) | {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
    document["model"]["vocab"].append(["more", -1.0])
    (here / "b").mkdir()
    (here / "b" / "tokenizer.json").write_text(json.dumps(document))
    save_tokenizer(here / "c", tokenizer("Unigram", WINE + " more", 60))
    assert "so no union" in cuvee("vocab", "a", "b").out
    assert "`{source: union}` to have all" in cuvee("vocab", "a", "c").out
    assert json.loads(cuvee("vocab", "a", "b", "--json").out)["has_union"] is False
