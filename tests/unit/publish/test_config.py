from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, Gemma3Config, LlamaConfig

from cuvee.errors import CheckpointError
from cuvee.publish.config import merged_config_text

LLAMA = """{
 "model_type": "llama", "vocab_size": 100,
   "num_hidden_layers" : 4,
 "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
 "torch_dtype": "float16", "rms_norm_eps": 1.0e-5, "unknown_to_all": [1,2 , 3]
}"""


def test_only_dtype_layers_and_vocabulary_change() -> None:
    result = merged_config_text(LLAMA, dtype="bfloat16", edits={("num_hidden_layers",): 6}, vocab_size=128)
    expected = LLAMA.replace("float16", "bfloat16").replace(": 4,\n", ": 6,\n").replace(": 100", ": 128")
    assert result == expected


def test_nothing_to_change_changes_nothing() -> None:
    assert merged_config_text(LLAMA, dtype=None, edits={}, vocab_size=None) == LLAMA


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"torch_dtype": "x"}', '{"torch_dtype": "float32"}'),
        ('{"dtype": null}', '{"dtype": "float32"}'),
        ('{"dtype": "x", "torch_dtype": "y"}', '{"dtype": "float32", "torch_dtype": "float32"}'),
        ('{"a": 1}', '{"a": 1, "torch_dtype": "float32"}'),
        ('{"text_config": {"dtype": "x"}}', '{"text_config": {"dtype": "float32"}}'),
        (
            '{"dtype": "x", "thinker_config": {"text_config": {"torch_dtype": "y"}}, "b_config": {"d": 1}}',
            '{"dtype": "float32", "thinker_config": {"text_config": {"torch_dtype": "float32"}}, "b_config": {"d": 1}}',
        ),
        (
            '{"dtype": "x", "quantization_config": {"dtype": "int4"}, "other": {"dtype": "z"}}',
            '{"dtype": "float32", "quantization_config": {"dtype": "int4"}, "other": {"dtype": "z"}}',
        ),
    ],
)
def test_dtype_is_set_where_the_config_names_one(before: str, after: str) -> None:
    assert merged_config_text(before, dtype="float32", edits={}, vocab_size=None) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"vocab_size": 1}', '{"vocab_size": 9}'),
        ('{"a": 1}', '{"a": 1, "vocab_size": 9}'),
        ('{"text_config": {"vocab_size": 1}}', '{"text_config": {"vocab_size": 9}}'),
        ('{"text_config": {"a": 1}}', '{"text_config": {"a": 1, "vocab_size": 9}}'),
        (
            '{"vocab_size": 1, "llm_config": {"vocab_size": 2}, "vision_config": {"vocab_size": 3}}',
            '{"vocab_size": 9, "llm_config": {"vocab_size": 9}, "vision_config": {"vocab_size": 3}}',
        ),
    ],
)
def test_vocabulary_is_set_for_the_language_part(before: str, after: str) -> None:
    assert merged_config_text(before, dtype=None, edits={}, vocab_size=9) == after


def test_a_broken_config_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        merged_config_text("{", dtype=None, edits={}, vocab_size=None)


def test_transformers_reads_the_edited_config_of_a_language_model(tmp_path: Path) -> None:
    text = merged_config_text(LLAMA, dtype="bfloat16", edits={("num_hidden_layers",): 6}, vocab_size=128)
    (tmp_path / "config.json").write_text(text)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert (config.num_hidden_layers, config.vocab_size, config.num_key_value_heads) == (6, 128, 2)
    assert str(config.dtype) == "torch.bfloat16"
    assert config.unknown_to_all == [1, 2, 3]


def test_transformers_reads_the_edited_config_of_a_model_of_parts(tmp_path: Path) -> None:
    Gemma3Config(text_config={"num_hidden_layers": 4, "vocab_size": 300, "dtype": "float32"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    layers: dict[tuple[str, ...], int] = {
        ("text_config", "num_hidden_layers"): 4,
        ("vision_config", "num_hidden_layers"): 3,
    }
    path.write_text(merged_config_text(path.read_text(), dtype="float16", edits=layers, vocab_size=320))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (4, 3)
    assert config.text_config.vocab_size == 320
    assert str(config.text_config.dtype) == "torch.float16"
    after = json.loads(path.read_text())
    assert after["text_config"].keys() == before["text_config"].keys()
    assert after["vision_config"]["hidden_size"] == before["vision_config"]["hidden_size"]


def test_a_dtype_that_is_null_says_nothing() -> None:
    """Parts that leave it to the whole model are left as they are."""
    text = '{"torch_dtype": "float32", "attn_config": {"dtype": null}}'
    assert merged_config_text(text, dtype="float32", edits={}, vocab_size=None) == text
    alone = merged_config_text('{"torch_dtype": null}', dtype="float16", edits={}, vocab_size=None)
    assert alone == '{"torch_dtype": "float16"}'
