from __future__ import annotations

from typing import Any

import pytest

from cuvee.errors import PlanError
from cuvee.layout.edits import layer_edits
from cuvee.layout.layout import Layout, layout_of

INSIDE = ("self_attn.q.weight", "self_attn.o.weight", "mlp.up.weight", "mlp.down.weight")


def stacks(config: dict[str, Any], **lengths: int) -> Layout:
    """The layout of a model with these stacks; `_` stands for a dot."""
    names = [f"{s.replace('_', '.')}.{i}.{rest}" for s, n in lengths.items() for i in range(n) for rest in INSIDE]
    return layout_of(names, config)


def test_configs_follow_the_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "max_position": 4,
        "layer_types": ["a", "b", "c", "d"],
        "eos": [1, 2, 3, 4],
        "text_config": {"n_layer": 4, "layer_types": ["w", "x"]},
        "vision_config": {"depth": 4},
    }
    assert layer_edits(config, stacks(config, model_layers=4), "model.layers", (0, 1, 1, 3, 3)) == {
        ("num_hidden_layers",): 5,
        ("layer_types",): ["a", "b", "b", "d", "d"],
        ("text_config", "n_layer"): 5,
    }


@pytest.mark.parametrize(
    ("more", "edits"),
    [
        ({"mlp_only_layers": [0, 3]}, {"mlp_only_layers": [0, 4]}),
        ({"first_k_dense_replace": 1}, {"first_k_dense_replace": 1}),
        ({"hybrid_override_pattern": "M-*E"}, {"hybrid_override_pattern": "M-*-E"}),
        ({"attention_types": [[["g", "l"], 2]], "attention_layers": list("glgl")},
         {"attention_types": [[list("glgll"), 1]], "attention_layers": list("glgll")}),
        ({"layer_types": list("abcdz")}, {"layer_types": list("abcbdz")}),
        ({"num_query_heads": [1, 2, 3, 4]}, {"num_query_heads": [1, 2, 3, 2, 4]}),
        ({"quantiles": [1, 2, 3, 4], "first_k_dense_replace": 9, "mlp_only_layers": ["x"]}, {}),
    ],
)  # fmt: skip
def test_everything_that_speaks_of_single_layers(more: dict[str, Any], edits: dict[str, Any]) -> None:
    config = {"num_hidden_layers": 4, **more}
    found = layer_edits(config, stacks(config, model_layers=4), "model.layers", (0, 1, 2, 1, 3))
    expected = {"num_hidden_layers": 5, **edits}
    assert {".".join(path): value for path, value in found.items()} == expected


def test_each_stack_has_its_own_count() -> None:
    config = {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}
    layout = stacks(config, model_encoder_layers=2, model_decoder_layers=2)
    assert layer_edits(config, layout, "model.decoder.layers", (0,)) == {("decoder_layers",): 1}
    assert layer_edits(config, layout, "model.encoder.layers", (0,)) == {
        ("encoder_layers",): 1,
        ("num_hidden_layers",): 1,
    }
    parts = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}}
    layout = stacks(parts, vision_tower_encoder_layers=2, language_model_layers=2)
    assert layer_edits(parts, layout, "vision.tower.encoder.layers", (0, 0, 1)) == {
        ("vision_config", "num_hidden_layers"): 3
    }
    assert layer_edits(parts, layout, "language.model.layers", (1,)) == {("text_config", "num_hidden_layers"): 1}


def test_a_decoder_that_the_encoder_s_entry_counted_gets_its_own() -> None:
    """T5's configs of old."""
    config = {"num_layers": 3}
    layout = stacks(config, encoder_block=3, decoder_block=3)
    assert layer_edits(config, layout, "decoder.block", (0, 2)) == {("num_decoder_layers",): 2}
    assert layer_edits(config, layout, "encoder.block", (0, 2)) == {("num_layers",): 2, ("num_decoder_layers",): 3}


def test_layers_beyond_the_count_are_no_layers() -> None:
    config = {"num_hidden_layers": 3}
    layout = stacks(config, model_layers=4)
    assert layout.stacks == {"model.layers": [0, 1, 2]}
    assert layer_edits(config, layout, "model.layers", (0, 1)) == {("num_hidden_layers",): 2}
    assert stacks({"num_hidden_layers": 3}, model_layers=9).stacks == {"model.layers": list(range(9))}
    assert layer_edits({}, stacks({}, model_layers=4), "model.layers", (0,)) == {}


def test_a_list_of_kinds_counts_where_nothing_else_does() -> None:
    """As Nemotron-H's configs have it."""
    config = {"layers_block_type": ["m", "a", "m"]}
    layout = stacks(config, model_layers=4)
    assert layout.stacks == {"model.layers": [0, 1, 2]}
    assert layer_edits(config, layout, "model.layers", (1, 2)) == {("layers_block_type",): ["a", "m"]}


def test_entries_come_from_the_model_that_the_layer_comes_from() -> None:
    """Which may be deeper than the one whose config is edited."""
    config = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "moe_layers": [1], "first_k_dense_replace": 1}
    deeper = {"num_hidden_layers": 4, "layer_types": list("wxyz"), "moe_layers": [3], "first_k_dense_replace": 2}
    edits = layer_edits(
        config, stacks(config, model_layers=2), "model.layers", (0, 1, 3, 1), (config, deeper, deeper, config)
    )
    assert {".".join(path): value for path, value in edits.items()} == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "x", "z", "b"],
        "moe_layers": [2, 3],
        "first_k_dense_replace": 2,
    }
    silent = layer_edits(config, stacks(config, model_layers=2), "model.layers", (0, 3), (config, {}))
    assert silent[("layer_types",)] == ["a", "b"]


def test_leading_layers_stay_in_front() -> None:
    config = {"num_hidden_layers": 3, "first_k_dense_replace": 1}
    with pytest.raises(PlanError, match="layer 1 of the output would be of a kind that only comes first"):
        layer_edits(config, stacks(config, model_layers=3), "model.layers", (1, 0, 2))
