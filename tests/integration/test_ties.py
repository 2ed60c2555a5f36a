"""Tied and untied models of real classes merge into an untied one that transformers loads whole, logits and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cuvee
from support.corpus import SPECIAL, reload, small_config

QUICK = (
    "BartForConditionalGeneration",
    "BertForMaskedLM",
    "LlamaForCausalLM",
    "SwitchTransformersForConditionalGeneration",
)
OTHERS = (
    "AlbertForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM", "Florence2ForConditionalGeneration",
    "GPT2LMHeadModel", "Gemma3ForConditionalGeneration", "LEDForConditionalGeneration",
    "M2M100ForConditionalGeneration", "MarianMTModel", "ModernBertForMaskedLM", "OPTForCausalLM",
    "PegasusForConditionalGeneration", "RobertaForMaskedLM",
)  # fmt: skip


def save(kind: Any, folder: Path, *, tied: bool) -> Any:
    import torch

    config = small_config(kind.config_class, SPECIAL.get(kind.__name__, {}))
    for part in (config, getattr(config, "text_config", None)):
        if part is not None:
            part.tie_word_embeddings = tied
    torch.manual_seed(int(tied))
    kind(config).save_pretrained(folder)
    return kind.from_pretrained(folder).eval()


def logits(model: Any) -> Any:
    import torch

    ids = torch.arange(4, 12)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("order", [("tied", "untied"), ("untied", "tied")])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_tied_and_untied_merge(name: str, order: tuple[str, str], tmp_path: Path) -> None:
    import torch
    import transformers

    kind = getattr(transformers, name)
    models = {which: save(kind, tmp_path / which, tied=which == "tied") for which in order}
    for whole, model in models.items():
        listed = [{"model": str(tmp_path / which), "parameters": {"weight": float(which == whole)}} for which in order]
        out = tmp_path / f"all-{whole}"
        cuvee.merge({"merge_method": "linear", "models": listed}, out)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        _, amiss = reload(kind, out)
        assert not amiss
        wanted = logits(model)
        torch.testing.assert_close(logits(kind.from_pretrained(out).eval()), wanted, rtol=1e-4, atol=1e-4)
        assert cuvee.check(out).ok
