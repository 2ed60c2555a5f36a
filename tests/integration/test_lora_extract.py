"""Extracted adapters, loaded by PEFT on their base: they are the fine-tune, within the error that is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora
from support.checkpoints import read_file, write_checkpoint
from support.tuned import everything, load, logits, make_pair, merged, relative_error, weights, with_adapter

TIED = ("qwen2", "gpt2")
FULL = {"max_rank": 64, "exact": True}


def extracted(folder: Path, pair: tuple[Path, Path], **options: Any) -> tuple[Path, Any]:
    base, tuned = pair
    report = extract_lora(str(tuned), str(base), folder / "adapter", ExtractOptions(**options))
    return folder / "adapter", report.extracted


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("embed", [False, True])
def test_at_full_rank_the_adapter_is_the_fine_tune(tmp_path: Path, family: str, embed: bool) -> None:
    pair = make_pair(tmp_path, family)
    adapter, found = extracted(tmp_path, pair, **FULL, embed_lora=embed, distribute_scale=not embed)
    wanted, got = load(pair[1]), with_adapter(pair[0], adapter)
    assert found.error < 1e-6
    assert logits(got) == pytest.approx(logits(wanted), abs=2e-6)
    if not (embed and family in TIED):  # PEFT adds a tied update to the shared weights twice, and warns of it
        assert relative_error(weights(load(pair[0])), weights(wanted), merged(got)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_at_low_rank_it_errs_as_reported(tmp_path: Path, family: str) -> None:
    pair = make_pair(tmp_path, family)
    adapter, found = extracted(tmp_path, pair, max_rank=4)
    got = merged(with_adapter(pair[0], adapter))
    base, wanted = weights(load(pair[0])), weights(load(pair[1]))
    stored = {each.name for each in found.held}
    base, wanted, got = ({key: one[key] for key in stored} for one in (base, wanted, got))
    assert found.error == pytest.approx(relative_error(base, wanted, got), rel=1e-4)
    assert 0.3 < found.error < 0.9


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_added_tokens_come_along(tmp_path: Path, family: str) -> None:
    pair = make_pair(tmp_path, family, tokens=5)
    adapter, _ = extracted(tmp_path, pair, **FULL, embed_lora=True)
    got = with_adapter(pair[0], adapter, rows=53)
    assert logits(got) == pytest.approx(logits(load(pair[1])), abs=2e-6)
    assert "model.resize_token_embeddings(53)" in (adapter / "README.md").read_text()


def test_what_did_not_change_is_not_in_the_adapter(tmp_path: Path) -> None:
    def change(name: str, values: Any, generator: Any) -> Any:
        wanted = (
            "layers.0.self_attn.q_proj.weight",
            "layers.1.self_attn.k_proj.bias",
            "layers.1.input_layernorm.weight",
        )
        return everything(name, values, generator) if name.endswith(wanted) else None

    pair = make_pair(tmp_path, "qwen2", change)
    adapter, found = extracted(tmp_path, pair, **FULL)
    stored = read_file(adapter / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model.model.layers.") for name in stored}
    assert tensors == {"0.self_attn.q_proj.lora_A.weight", "0.self_attn.q_proj.lora_B.weight",
                       "1.self_attn.k_proj.bias", "1.input_layernorm.weight"}  # fmt: skip
    got = with_adapter(pair[0], adapter)
    assert logits(got) == pytest.approx(logits(load(pair[1])), abs=2e-6)
    assert len(found.held) == 3


def test_files_that_leave_out_how_names_begin(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "gpt2")
    short = tmp_path / "short-base", tmp_path / "short-tuned"
    for folder, full in zip(short, pair, strict=True):
        tensors = {name.removeprefix("transformer."): a for name, a in read_file(full / "model.safetensors").items()}
        write_checkpoint(folder, tensors, json.loads((full / "config.json").read_text()))
    adapter, _ = extracted(tmp_path, short, **FULL)
    got = with_adapter(pair[0], adapter)
    assert logits(got) == pytest.approx(logits(load(pair[1])), abs=2e-6)
