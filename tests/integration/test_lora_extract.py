"""Extracted adapters, loaded by PEFT on their base: they are the fine-tune, within the error that is reported."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora
from support.adapters import quiet_peft
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


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("family", ["classifier", "whisper"])
def test_heads_that_peft_knows_by_other_names(tmp_path: Path, family: str, embed: bool) -> None:
    """PEFT saves a classifier whole, unasked, and calls Whisper's tied head `proj_out`."""
    import torch
    import transformers
    from peft import PeftModel

    small = {"vocab_size": 40, "pad_token_id": 0}
    if family == "classifier":
        config: Any = transformers.BertConfig(
            **small, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
        )
        kind: Any = transformers.BertForSequenceClassification
        inputs = {"input_ids": torch.arange(3, 12)[None]}
    else:
        config = transformers.WhisperConfig(
            **small, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=16,
            max_target_positions=16, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        kind = transformers.WhisperForConditionalGeneration
        inputs = {"input_features": torch.ones(1, 8, 32), "decoder_input_ids": torch.arange(3, 12)[None]}
    torch.manual_seed(0)
    with quiet_peft(), torch.no_grad():
        model = kind(config)
        model.save_pretrained(tmp_path / "base")
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / "tuned")
        adapter, _ = extracted(tmp_path, (tmp_path / "base", tmp_path / "tuned"), **FULL, embed_lora=embed)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            got = PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), adapter).eval()
        wanted = kind.from_pretrained(tmp_path / "tuned").eval()(**inputs).logits
        assert got.base_model.model(**inputs).logits.numpy() == pytest.approx(wanted.numpy(), abs=2e-6)


def test_models_that_see_are_told_of(tmp_path: Path) -> None:
    base, tuned = make_pair(tmp_path, "llama")
    assert extracted(tmp_path, (base, tuned), max_rank=2)[1].warnings == ()
    config = json.loads((tuned / "config.json").read_text()) | {"vision_config": {"model_type": "clip_vision_model"}}
    (tuned / "config.json").write_text(json.dumps(config))
    report = extract_lora(str(tuned), str(base), tmp_path / "seeing", ExtractOptions(max_rank=2))
    assert "the adapter has no effect there" in "".join(report.extracted.warnings)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava", "gemma3"])
def test_peft_finds_the_modules_of_models_that_see(tmp_path: Path, family: str) -> None:
    """Their files begin names otherwise than transformers does in memory, where PEFT looks."""
    import torch
    import transformers
    from peft import PeftModel

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    sections = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    visual = {"depth": 1, "hidden_size": 32, "num_heads": 4}
    kind, config = {
        "qwen2_vl": ("Qwen2VL", {"text_config": {**text, **sections}, "vision_config": {**visual, "embed_dim": 32}}),
        "qwen2_5_vl": (
            "Qwen2_5_VL",
            {"text_config": {**text, **sections}, "vision_config": {**visual, "out_hidden_size": 32}},
        ),
        "llava": ("Llava", {"text_config": {**text, "model_type": "llama"}, "vision_config": tower}),
        "gemma3": (
            "Gemma3",
            {"text_config": {**text, "head_dim": 8}, "vision_config": tower, "mm_tokens_per_image": 4},
        ),
    }[family]
    loader = getattr(transformers, f"{kind}ForConditionalGeneration")
    torch.manual_seed(0)
    with quiet_peft(), torch.no_grad():
        model = loader(getattr(transformers, f"{kind}Config")(**config))
        model.save_pretrained(tmp_path / "base")
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "qkv.weight", "down_proj.weight", "linear_1.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / "tuned")
        adapter, report = extracted(tmp_path, (tmp_path / "base", tmp_path / "tuned"), **FULL)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            got = PeftModel.from_pretrained(loader.from_pretrained(tmp_path / "base"), adapter).merge_and_unload()
        for name, wanted in model.state_dict().items():
            assert got.state_dict()[name].numpy() == pytest.approx(wanted.numpy(), abs=2e-6), name
    assert report.warnings == ()
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{adapter}"}]}
    cuvee.merge(recipe, tmp_path / "merged")
    tuned = read_file(tmp_path / "tuned" / "model.safetensors")
    for name, values in read_file(tmp_path / "merged" / "model.safetensors").items():
        assert values == pytest.approx(tuned[name], abs=2e-6), name
