from __future__ import annotations

from typing import Any

import pytest

from cuvee.layout.counts import counts_of

VLM = {"model.language_model.layers": (4, 40), "model.visual.blocks": (4, 60), "audio_tower.layers": (4, 30)}


def found(stacks: dict[str, tuple[int, int]], config: dict[str, Any]) -> dict[str, list[str]]:
    return {stack: [".".join(c.path) for c in counts] for stack, counts in counts_of(stacks, config).items()}


@pytest.mark.parametrize(
    ("stacks", "config", "expected"),
    [
        ({"model.layers": (3, 30)}, {"num_hidden_layers": 3}, {"model.layers": ["num_hidden_layers"]}),
        ({"transformer.h": (3, 30)}, {"n_layer": 3}, {"transformer.h": ["n_layer"]}),
        # parts of equal length are told apart by the words of their names
        (VLM, {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 4},
               "audio_config": {"encoder_layers": 4, "num_hidden_layers": 4}},
         {"model.language_model.layers": ["text_config.num_hidden_layers"],
          "model.visual.blocks": ["vision_config.depth"],
          "audio_tower.layers": ["audio_config.num_hidden_layers", "audio_config.encoder_layers"]}),
        # a flat config with a vision part, as Qwen2-VL has it: the plain entry is the text's
        ({"model.layers": (4, 40), "visual.blocks": (4, 60)}, {"num_hidden_layers": 4, "vision_config": {"depth": 4}},
         {"model.layers": ["num_hidden_layers"], "visual.blocks": ["vision_config.depth"]}),
        # encoder and decoder; the plain entry is the encoder's
        ({"encoder.block": (2, 20), "decoder.block": (2, 30)}, {"num_layers": 2, "num_decoder_layers": 2},
         {"encoder.block": ["num_layers"], "decoder.block": ["num_decoder_layers"]}),
        # an encoder alone, whose config does not call it one
        ({"bert.encoder.layer": (2, 20)}, {"num_hidden_layers": 2}, {"bert.encoder.layer": ["num_hidden_layers"]}),
        # of stacks that fit equally the one of that length
        ({"a.layers": (3, 90), "b.layers": (2, 20)}, {"num_hidden_layers": 2}, {"b.layers": ["num_hidden_layers"]}),
        ({"model.layers": (2, 20)}, {"num_hidden_layers": True, "n_layer": "2", "depth": 0}, {}),
        ({"model.layers": (2, 20)}, {"vision_config": {"depth": 2}}, {}),
        ({"model.layers": (2, 20)}, {"layer_types": ["a", "b"]}, {"model.layers": ["layer_types"]}),
    ],
)  # fmt: skip
def test_entries_find_their_stack(
    stacks: dict[str, tuple[int, int]], config: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    assert found(stacks, config) == expected
