from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.checking.check import check_checkpoint
from cuvee.checking.findings import CheckReport
from cuvee.errors import SourceError
from support.checkpoints import DTYPES, Array, write_checkpoint, write_index

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3, "vocab_size": 8,
          "tie_word_embeddings": False, "eos_token_id": 2}  # fmt: skip
REST = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")


def model(
    layers: Sequence[int] = (0, 1, 2), *, rows: int = 8, head: bool = True, dtype: Any = np.float32
) -> dict[str, Array]:
    found = {"model.embed_tokens.weight": np.arange(rows * 2).reshape(rows, 2).astype(dtype)}
    found |= {f"model.layers.{layer}.{rest}": np.ones((2, 2), dtype) for layer in layers for rest in REST}
    found["model.norm.weight"] = np.ones(2, dtype)
    return found | ({"lm_head.weight": np.ones((rows, 2), dtype)} if head else {})


def report(
    folder: Path,
    tensors: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    quick: bool = True,
    **changes: Any,
) -> CheckReport:
    write_checkpoint(folder, tensors or model(), {**(CONFIG if config is None else config), **changes})
    return check_checkpoint(folder, quick=quick)


def told(found: CheckReport, check: str, state: str) -> str:
    (text,) = [each.text for each in found.findings if (each.check, each.state) == (check, state)]
    return text


def test_a_sound_checkpoint(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert found.ok
    assert [(each.check, each.state) for each in found.findings] == [
        ("files", "ok"), ("layers", "ok"), ("ties", "ok"), ("vocabulary", "ok")
    ]  # fmt: skip
    assert told(found, "files", "ok") == "15 tensors, 0.0 MB of float32 in 1 file"
    assert told(found, "layers", "ok") == "model.layers: 3"


def test_shards_are_counted_and_their_index_believed_only_if_true(tmp_path: Path) -> None:
    tensors = model()
    first = {name: tensor for name, tensor in tensors.items() if "layers" in name}
    rest = {name: tensor for name, tensor in tensors.items() if name not in first}
    found = report(tmp_path, [first, rest])
    assert told(found, "files", "ok").endswith("in 2 files that agree with their index")
    write_index(tmp_path, dict.fromkeys(tensors, "model-00001-of-00002.safetensors"))
    found = check_checkpoint(tmp_path, quick=True)
    assert not found.ok
    assert "does not tell the truth" in told(found, "files", "problem")


def test_damaged_files(tmp_path: Path) -> None:
    report(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    assert "is not a valid safetensors file" in told(check_checkpoint(tmp_path), "files", "problem")
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in told(check_checkpoint(tmp_path), "files", "problem")
    (tmp_path / "config.json").unlink()
    assert "no config.json" in told(check_checkpoint(tmp_path, quick=True), "config", "note")
    with pytest.raises(SourceError):
        check_checkpoint(tmp_path / "nowhere")


def test_layers_that_are_not_stored(tmp_path: Path) -> None:
    text = told(report(tmp_path / "a", model((0, 2))), "layers", "problem")
    assert text == "model.layers: num_hidden_layers is 3, and layers 1 are not stored"
    assert "layers 3 are not stored" in told(report(tmp_path / "b", num_hidden_layers=4), "layers", "problem")
    assert told(report(tmp_path / "c", num_hidden_layers=2), "layers", "ok") == "model.layers: 2 and 1 beyond them"


def test_a_layer_that_lacks_a_part_is_noted(tmp_path: Path) -> None:
    tensors = model()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    found = report(tmp_path, tensors)
    assert found.ok  # ModernBERT's first layer is meant to be like this
    assert told(found, "layers", "note") == "model.layers: layer 1 lacks mlp.up_proj.weight, which 2 layers have"


def test_lists_with_one_entry_a_layer(tmp_path: Path) -> None:
    found = report(tmp_path, layer_types=["full_attention"] * 2)
    assert told(found, "layers", "problem") == "layer_types has 2 entries for 3 layers"


def test_heads(tmp_path: Path) -> None:
    found = report(tmp_path / "a", model(head=False))
    assert "needs a head of its own, and none is stored" in told(found, "head", "problem")
    assert "embed_tokens" in told(report(tmp_path / "b", model(head=False), tie_word_embeddings=True), "ties", "ok")
    odd = model(head=False) | {"output_layer.weight": np.ones((8, 2), np.float32)}
    assert "no tensor has a name that heads have" in told(report(tmp_path / "c", odd), "head", "note")


@pytest.mark.parametrize("said", [True, False])
def test_a_tied_head_must_equal_its_embedding(said: bool, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("tie_word_embeddings", "architectures")}
    config |= {"tie_word_embeddings": True} if said else {}
    tensors = model()
    found = report(tmp_path / "a", tensors, config, quick=False)
    assert "lm_head.weight differs" in told(found, "ties", "problem" if said else "note")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert report(tmp_path / "b", tensors, config, quick=False).ok


def test_the_vocabulary(tmp_path: Path) -> None:
    text = told(report(tmp_path / "a", vocab_size=9), "vocabulary", "problem")
    assert text == "config.json says vocab_size 9, and the embedding has 8 rows"
    text = told(report(tmp_path / "d", vocab_size=6), "vocabulary", "note")
    assert text == "8 rows, 2 more than vocab_size says"
    text = told(report(tmp_path / "b", eos_token_id=[2, 8]), "vocabulary", "problem")
    assert text == "eos_token_id is 8, and the embedding has 8 rows"
    assert report(tmp_path / "c", pad_token_id=-1, bos_token_id=None, eos_token_id=7).ok


BPE = {"model": {"vocab": {"a": 0, "b": 6}}}
TOKENIZERS = [
    ("tokenizer.json", BPE, 7),
    ("tokenizer.json", {**BPE, "added_tokens": [{"id": 7, "content": "x"}]}, 8),
    ("tokenizer.json", {**BPE, "added_tokens": [{"id": 8, "content": "x"}]}, 9),
    ("tokenizer.json", {"model": {"vocab": [["a", 0.1]] * 8}}, 8),
    ("vocab.json", {"a": 0, "b": 8}, 9),
    ("vocab.txt", "a\nb\nc\n", 3),
]


@pytest.mark.parametrize(("name", "content", "length"), TOKENIZERS)
def test_the_tokenizer_fits_the_embedding(name: str, content: Any, length: int, tmp_path: Path) -> None:
    report(tmp_path)
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    found = check_checkpoint(tmp_path, quick=True)
    if length <= 8:
        assert told(found, "vocabulary", "ok") == f"8 rows, {length} tokens in the tokenizer"
    else:
        text = told(found, "vocabulary", "problem")
        assert text == f"the tokenizer has ids up to {length - 1}, and the embedding has 8 rows"
    assert "tokens" not in told(check_checkpoint(tmp_path, quick=True, tokenizer=False), "vocabulary", "ok")


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    report(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert told(check_checkpoint(tmp_path, quick=True), "vocabulary", "problem") == "tokenizer.json is not JSON"


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(code: str, bad: float, tmp_path: Path) -> None:
    dtype = DTYPES[code]
    big = np.ones((3, 2**19 + 5), np.float32)
    big[2, -1] = big[0, 7] = bad
    tensors = model() | {"model.big": big.astype(dtype), "model.ids": np.array([-1, 2**31 - 1], np.int32)}
    largest = np.float32(448 if code == "F8_E4M3" else 57344 if code == "F8_E5M2" else 65504)
    tensors["model.edge"] = np.array([largest, -largest, 0, -0.0], np.float32).astype(dtype)
    found = report(tmp_path, tensors, quick=False)
    text = told(found, "values", "problem")
    assert text == "1 tensors hold NaN or infinities: model.big (2)"


def test_the_largest_numbers_are_finite(tmp_path: Path) -> None:
    import ml_dtypes

    largest = {f"w.{c}": np.array([ml_dtypes.finfo(d).max, ml_dtypes.finfo(d).min]).astype(d) for c, d in DTYPES.items()
               if c[0] in "FB" and c != "BOOL"}  # fmt: skip
    assert told(report(tmp_path, model() | largest, quick=False), "values", "ok") == "all finite"
