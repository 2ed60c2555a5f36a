from __future__ import annotations

from typing import Any

import pytest

from cuvee.layout.vocabulary import vocabulary_axes, vocabulary_rows, vocabulary_size, vocabulary_size_keys

LAYER = {"model.layers.0.self_attn.q_proj.weight": (16, 16), "model.layers.0.mlp.up_proj.weight": (100, 16)}
NORM = {"model.norm.weight": (16,)}


@pytest.mark.parametrize(
    ("outside", "axes"),
    [
        ({"model.embed_tokens.weight": (100, 16), "lm_head.weight": (100, 16), "lm_head.bias": (100,)},
         {"model.embed_tokens.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0}),
        ({"bert.embeddings.word_embeddings.weight": (100, 16), "cls.predictions.bias": (100,),
          "bert.embeddings.position_embeddings.weight": (64, 16)},
         {"bert.embeddings.word_embeddings.weight": 0, "cls.predictions.bias": 0}),
        ({"shared.weight": (100, 16), "final_logits_bias": (1, 100)}, {"shared.weight": 0, "final_logits_bias": 1}),
        ({"backbone.embeddings.weight": (100, 16)}, {"backbone.embeddings.weight": 0}),
        ({"model.embed_tokens.weight": (100, 16), "odd.projection": (16, 100)},
         {"model.embed_tokens.weight": 0, "odd.projection": 1}),
        ({"model.visual.patch_embed.proj.weight": (100, 16)}, {}),
    ],
)  # fmt: skip
def test_tensors_with_one_entry_a_token(outside: dict[str, Any], axes: dict[str, int]) -> None:
    """Layers never have any, even where a size is the vocabulary's by chance."""
    assert vocabulary_axes({**outside, **LAYER, **NORM}, {"vocab_size": 100, "hidden_size": 16}) == axes


def test_a_length_that_means_something_else_too_is_no_sign() -> None:
    shapes = {"model.embed_tokens.weight": (64, 64), "score.weight": (2, 64), "wpe.weight": (64, 64)}
    assert vocabulary_axes(shapes, {"vocab_size": 64, "hidden_size": 64}) == {"model.embed_tokens.weight": 0}


def test_rows_are_the_embedding_s_not_the_config_s() -> None:
    shapes = {"model.embed_tokens.weight": (128, 16), "lm_head.weight": (128, 16)}
    assert vocabulary_rows(shapes, {"vocab_size": 100}) == 128
    assert set(vocabulary_axes(shapes, {"vocab_size": 100})) == set(shapes)
    two = {"model.embed_tokens.weight": (100, 16), "model.embed_tokens_per_layer.weight": (90, 16)}
    assert vocabulary_rows(two, {}) == 100
    assert vocabulary_rows(NORM, {}) is None


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"vocab_size": 9}, ["vocab_size"]),
        ({"text_config": {"vocab_size": 9}, "vision_config": {"vocab_size": 9}}, ["text_config.vocab_size"]),
        ({"vocab_size": 9, "text_config": {"vocab_size": 9}}, ["text_config.vocab_size", "vocab_size"]),
        ({"thinker_config": {"text_config": {"vocab_size": 9}, "audio_config": {}}},
         ["thinker_config.text_config.vocab_size"]),
        ({"vocab_size": 9, "text_config": {"vocab_size": 8}}, ["text_config.vocab_size"]),
        ({"n_words": 9}, ["n_words"]),
        ({"text_config": {"model_type": "x"}}, ["text_config.vocab_size"]),
        ({}, ["vocab_size"]),
    ],
)  # fmt: skip
def test_where_configs_keep_the_size(config: dict[str, Any], keys: list[str]) -> None:
    assert [".".join(key) for key in vocabulary_size_keys(config)] == keys


def test_the_size_that_a_config_names() -> None:
    assert vocabulary_size({"vocab_size": 7, "text_config": {"vocab_size": 8}}) == 8
    assert vocabulary_size({}) is None
