from __future__ import annotations

import pytest

from cuvee.layout.modules import owner

VISION = ("text_decoder", "vision_tower", "multi_modal_projector")
LLAMA4 = ("text_decoder", "vision_model", "multi_modal_projector")
T5 = ("encoder", "decoder", "shared")


@pytest.mark.parametrize(
    ("name", "modules", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", VISION, "text_decoder"),
        ("lm_head.weight", VISION, "text_decoder"),
        ("visual.blocks.0.attn.qkv.weight", VISION, "vision_tower"),
        ("model.visual.blocks.0.attn.qkv.weight", VISION, "vision_tower"),
        ("visual.merger.mlp.0.weight", VISION, "multi_modal_projector"),
        ("visual.deepstack_merger_list.0.norm.weight", VISION, "multi_modal_projector"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", VISION, "vision_tower"),
        ("multi_modal_projector.mm_input_projection_weight", VISION, "multi_modal_projector"),
        ("vision_model.model.layers.0.mlp.fc1.weight", LLAMA4, "vision_model"),
        ("language_model.model.layers.0.mlp.up_proj.weight", LLAMA4, "text_decoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", T5, "encoder"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", T5, "decoder"),
        ("shared.weight", T5, "shared"),
        ("lm_head.weight", T5, "decoder"),
        ("model.decoder.layers.0.encoder_attn.q_proj.weight", ("encoder", "decoder"), "decoder"),
        ("audio_tower.layers.0.fc1.weight", ("audio_tower", "default"), "audio_tower"),
        ("thinker.model.layers.0.mlp.up_proj.weight", ("thinker", "talker"), "thinker"),
        ("talker.model.layers.0.mlp.up_proj.weight", ("thinker", "talker"), "talker"),
        ("code2wav.layers.0.weight", ("thinker", "talker"), None),
        ("visual.blocks.0.attn.qkv.weight", ("text_decoder",), None),
        ("shared.weight", ("encoder", "decoder"), None),
        ("encoder.layer.0.weight", ("text_decoder",), "text_decoder"),
    ],
)
def test_whose_a_tensor_is(name: str, modules: tuple[str, ...], expected: str | None) -> None:
    assert owner(name, modules) == expected
    assert owner(name, modules[::-1]) == expected
