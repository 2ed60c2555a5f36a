"""T5 scales what goes into a tied head and not what goes into one of its own: merges of both keep the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee import MergeOptions

WIDTH = 24  # no power of four: the scale is not exact in float32


def save_t5(folder: Path, seed: int, *, tied: bool, named: bool) -> Any:
    """A tiny T5 in a folder; `named`: with transformers 5's word for the scale beside 4's."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=tied)
    )
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(40, WIDTH))
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["tie_word_embeddings"] = tied
    if not named:
        del config["scale_decoder_outputs"]
    path.write_text(json.dumps(config))
    return loaded(folder)


def loaded(folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        ids = torch.arange(3, 15)[None]
        return model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("order", [("tied", "untied"), ("untied", "tied")])
def test_a_tied_and_an_untied_t5_keep_their_logits(order: tuple[str, str], named: bool, tmp_path: Path) -> None:
    import torch

    models = {
        name: save_t5(tmp_path / name, i, tied=name == "tied", named=named) for i, name in enumerate(sorted(order))
    }
    for whole in order:
        listed = [{"model": str(tmp_path / name), "parameters": {"weight": float(name == whole)}} for name in order]
        out = tmp_path / f"all-{whole}"
        report = cuvee.merge({"merge_method": "linear", "models": listed}, out, MergeOptions())
        config = json.loads((out / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        assert config.get("scale_decoder_outputs", False) is False
        got, wanted = logits(loaded(out)), logits(models[whole])
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert any(
            "its head is multiplied by 0.204124" in note
            for note in cuvee.plan({"merge_method": "linear", "models": listed}).notes
        )
        assert report.merged


def test_tied_t5s_stay_tied(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_t5(tmp_path / name, seed, tied=True, named=True)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "parameters": {"weight": 1},
    }
    assert not [op for op in cuvee.plan(recipe).ops if op.name == "lm_head.weight"]
