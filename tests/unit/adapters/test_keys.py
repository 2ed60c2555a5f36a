from __future__ import annotations

import pytest

from cuvee.adapters.keys import Key, parse_key

PREFIX = "base_model.model."
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "module", "part"),
    [
        (f"{PREFIX}{LAYER}.lora_A.weight", LAYER, "lora_A"),
        (f"{LAYER}.lora_B.weight", LAYER, "lora_B"),  # some trainers leave PEFT's prefix out
        (f"{PREFIX}{LAYER}.lora_A.default.weight", LAYER, "lora_A"),
        (f"{PREFIX}{LAYER}.lora_B.bias", LAYER, "lora_B.bias"),
        (f"{PREFIX}{LAYER}.lora_magnitude_vector", LAYER, "lora_magnitude_vector"),
        (f"{PREFIX}{LAYER}.lora_magnitude_vector.default.weight", LAYER, "lora_magnitude_vector"),
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", "model.embed_tokens", "lora_embedding_A"),
        (f"{PREFIX}model.embed_tokens.lora_embedding_B.default", "model.embed_tokens", "lora_embedding_B"),
        (f"{PREFIX}e.token_adapter.trainable_tokens_delta", "e", "trainable_tokens_delta"),
        (f"{PREFIX}mlp.experts.base_layer.lora_A.weight", "mlp.experts.base_layer", "lora_A"),
        (f"{PREFIX}{LAYER}.hada_w1_a", LAYER, "hada_w1_a"),
        (f"{PREFIX}{LAYER}.lokr_w2", LAYER, "lokr_w2"),
        (f"{PREFIX}{LAYER}.ia3_l", LAYER, "ia3_l"),
        ("base_model.vera_A", "", "vera_A"),
        (f"{PREFIX}lm_head.weight", "lm_head.weight", ""),
        (f"{PREFIX}lm_head.modules_to_save.weight", "lm_head.weight", ""),
        (f"{PREFIX}lm_head.modules_to_save.default.weight", "lm_head.weight", ""),
        (f"{PREFIX}model.embed_tokens.base_layer.weight", "model.embed_tokens.weight", ""),
        (f"{PREFIX}model.norm.ln_tuning_layers.weight", "model.norm.weight", ""),
        (f"{PREFIX}{LAYER}.bias", f"{LAYER}.bias", ""),
    ],
)
def test_names(name: str, module: str, part: str) -> None:
    assert parse_key(name) == Key(module, part)


def test_what_only_a_trainer_needs() -> None:
    assert parse_key(f"{PREFIX}lm_head.original_module.weight") is None
