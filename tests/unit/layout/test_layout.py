from __future__ import annotations

import pytest

from cuvee.layout.layout import layout_of
from cuvee.layout.names import Place, acts_before_layers, place_of
from cuvee.layout.ties import tied_embedding

# Names as transformers writes them -> stack, layer, name within the layer.
INSIDE = {
    "model.layers.0.self_attn.q_proj.weight": ("model.layers", 0, "self_attn.q_proj.weight"),  # Llama
    "model.layers.31.input_layernorm.weight": ("model.layers", 31, "input_layernorm.weight"),
    "transformer.h.11.attn.c_attn.bias": ("transformer.h", 11, "attn.c_attn.bias"),  # GPT-2
    "h.2.ln_1.weight": ("h", 2, "ln_1.weight"),
    "bert.encoder.layer.3.attention.self.query.weight": ("bert.encoder.layer", 3, "attention.self.query.weight"),
    "encoder.block.5.layer.1.DenseReluDense.wi.weight": ("encoder.block", 5, "layer.1.DenseReluDense.wi.weight"),  # T5
    "decoder.block.0.layer.2.layer_norm.weight": ("decoder.block", 0, "layer.2.layer_norm.weight"),
    "model.layers.7.block_sparse_moe.experts.3.w1.weight": ("model.layers", 7, "block_sparse_moe.experts.3.w1.weight"),
    "visual.blocks.31.attn.qkv.weight": ("visual.blocks", 31, "attn.qkv.weight"),  # Qwen2-VL
    "visual.merger.mlp.2.bias": ("visual.merger.mlp", 2, "bias"),
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight": (
        "vision_tower.vision_model.encoder.layers", 1, "mlp.fc1.weight",
    ),
}  # fmt: skip
OUTSIDE = [
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "transformer.wte.weight", "wpe.weight",
    "bert.embeddings.word_embeddings.weight", "shared.weight", "encoder.final_layer_norm.weight", "score.weight",
    "visual.patch_embed.proj.weight", "weight", "0.weight", "classifier.0", "a.-1.b", "a.1x.b", "a.²ndd.b",
]  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_names_inside_layers(name: str) -> None:
    place = place_of(name)
    assert (place.stack, place.layer, place.rest) == INSIDE[name]
    assert place.name() == name
    assert place.name(99) == name.replace(f".{place.layer}.", ".99.", 1)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_outside_layers(name: str) -> None:
    assert place_of(name) == Place(None, 0, name)
    assert place_of(name).name() == name
    assert place_of(name).name(5) == name


LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{rest}" for i in (0, 1, 2, 10) for rest in ("self_attn.q_proj.weight", "mlp.up_proj.weight")),
    "model.norm.weight",
    "lm_head.weight",
]
T5 = [
    "shared.weight",
    *(f"encoder.block.{i}.layer.0.SelfAttention.q.weight" for i in range(2)),
    *(f"decoder.block.{i}.layer.{j}.o.weight" for i in range(3) for j in range(2)),
    "decoder.final_layer_norm.weight",
]


def test_stacks_have_their_layers_in_order_of_number() -> None:
    layout = layout_of(LLAMA)
    assert layout.stacks == {"model.layers": [0, 1, 2, 10]}
    assert layout.main_stack == "model.layers"
    assert layout.layers["model.layers", 10] == {
        "self_attn.q_proj.weight": "model.layers.10.self_attn.q_proj.weight",
        "mlp.up_proj.weight": "model.layers.10.mlp.up_proj.weight",
    }
    assert list(layout.places) == LLAMA


def test_the_stack_with_most_tensors_is_the_main_one() -> None:
    layout = layout_of(T5)
    assert list(layout.stacks) == ["decoder.block", "encoder.block"]
    assert layout.main_stack == "decoder.block"
    assert layout_of(["a.weight"]).main_stack is None


def test_positions_run_from_0_to_1_over_each_stack() -> None:
    """By the place in the stack, not by the number: layer 10 is the fourth of four."""
    layout = layout_of(LLAMA)
    found = {name: layout.position(name) for name in LLAMA}
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == found["model.norm.weight"] == 0
    at = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1, 2, 10)]
    assert at == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]
    t5 = layout_of(T5)
    assert t5.position("encoder.block.1.layer.0.SelfAttention.q.weight") == 1
    assert t5.position("decoder.block.1.layer.1.o.weight") == 0.5
    assert layout_of(["model.layers.0.a"]).position("model.layers.0.a") == 1


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "wpe.weight", "bert.embeddings.LayerNorm.weight",
                                  "shared.weight", "visual.patch_embed.proj.weight", "transformer.wte.weight",
                                  "vision_model.pre_layrnorm.weight"])  # fmt: skip
def test_what_acts_before_the_layers(name: str) -> None:
    assert acts_before_layers(name)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "transformer.ln_f.bias", "score.weight"])
def test_what_acts_after_the_layers(name: str) -> None:
    assert not acts_before_layers(name)


def test_heads_are_tied_to_the_one_embedding() -> None:
    assert tied_embedding(LLAMA, "lm_head.weight") == "model.embed_tokens.weight"
    assert (
        tied_embedding(["transformer.wte.weight", "transformer.wpe.weight"], "lm_head.weight")
        == "transformer.wte.weight"
    )
    assert tied_embedding(LLAMA, "model.norm.weight") is None
    assert tied_embedding(["model.norm.weight"], "lm_head.weight") is None
    two = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    assert tied_embedding(two, "lm_head.weight") is None
    assert tied_embedding(["model.layers.0.embed_tokens.weight"], "lm_head.weight") is None
