"""Checkpoints of one model that are named or put together differently, merged as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import cuvee
from support.checkpoints import read_checkpoint
from support.tiny_models import BFLOAT16, State, assert_rounded_once, make_llama

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 32}  # fmt: skip


def recipe(*models: Path, **entries: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 1 + i}} for i, model in enumerate(models)]
    return {"merge_method": "linear", "models": listed, **entries}


def mean(first: State, second: State) -> State:
    return {name: (first[name].astype(float) + 2 * second[name].astype(float)) / 3 for name in first}


def loads(folder: Path) -> None:
    import transformers

    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    _, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]


def mixtral(folder: Path, seed: int, **more: Any) -> Callable[..., Path]:
    """Saves one Mixtral in different layouts."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=3, **SIZES, **more))

    def save(name: str, **options: Any) -> Path:
        model.save_pretrained(folder / name, **options)
        return folder / name

    return save


@pytest.mark.parametrize("five_first", [False, True])
def test_mixtral_as_transformers_4_and_5_write_it(five_first: bool, tmp_path: Path) -> None:
    a, b = mixtral(tmp_path, 1), mixtral(tmp_path, 2)
    layouts = ({"save_original_format": False}, {"save_original_format": True})
    first, second = layouts if five_first else layouts[::-1]
    base, other, other_alike = a("base", **first), b("other", **second), b("alike", **first)
    assert read_checkpoint(base).keys() != read_checkpoint(other).keys()
    report = cuvee.merge(recipe(base, other), tmp_path / "out")
    result = read_checkpoint(tmp_path / "out")
    assert result.keys() == read_checkpoint(base).keys()
    assert_rounded_once(result, mean(read_checkpoint(base), read_checkpoint(other_alike)), np.dtype(np.float32))
    assert not report.dropped
    loads(tmp_path / "out")


def test_more_threads_and_small_blocks_give_the_same_bytes(tmp_path: Path) -> None:
    base = mixtral(tmp_path, 1)("base", save_original_format=False)
    other = mixtral(tmp_path, 2)("other")
    entries = recipe(base, other) | {"merge_method": "ties", "base_model": str(base), "parameters": {"density": 0.4}}
    for number, options in enumerate(({"threads": 1}, {"processes": 2}, {"memory": "32MiB"})):
        cuvee.merge(entries, tmp_path / f"out{number}", cuvee.MergeOptions(**options))
    first = read_checkpoint(tmp_path / "out0")
    for number in (1, 2):
        again = read_checkpoint(tmp_path / f"out{number}")
        assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def test_bert_with_and_without_its_prefix(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.BertConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                     vocab_size=32, num_labels=2)  # fmt: skip
    torch.manual_seed(5)
    transformers.BertModel(config, add_pooling_layer=True).save_pretrained(tmp_path / "bare")
    whole = transformers.BertForSequenceClassification(config)
    bare = read_checkpoint(tmp_path / "bare")
    state = {name: tensor.detach().numpy() for name, tensor in whole.bert.state_dict().items()}
    whole.bert.save_pretrained(tmp_path / "alike")
    save_file(
        {f"bert.{name}": state[name] for name in bare}, tmp_path / "alike" / "model.safetensors", {"format": "pt"}
    )
    plan = cuvee.plan(recipe(tmp_path / "bare", tmp_path / "alike"))
    assert "(bert.* as *)" in plan.notes[0]
    cuvee.merge(recipe(tmp_path / "bare", tmp_path / "alike"), tmp_path / "out")
    assert_rounded_once(read_checkpoint(tmp_path / "out"), mean(bare, state), np.dtype(np.float32))
    loads(tmp_path / "out")


def test_a_phi3_meets_its_llama_layout(tmp_path: Path) -> None:
    """Phi-3 fuses what Llama splits; the output is whatever the base is."""
    family = make_llama(tmp_path / "family", dtype=BFLOAT16)
    split = family.state("a")
    whole = {
        name: tensor for name, tensor in split.items() if "_proj" not in name or "o_proj" in name or "down" in name
    }
    for layer in range(3):
        at = f"model.layers.{layer}."
        qkv = [split[f"{at}self_attn.{name}_proj.weight"] for name in "qkv"]
        whole[f"{at}self_attn.qkv_proj.weight"] = np.concatenate(qkv)
        gates = [split[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        whole[f"{at}mlp.gate_up_proj.weight"] = np.concatenate(gates)
    save_file(whole, family.path("a") / "model.safetensors", {"format": "pt"})
    cuvee.merge(recipe(family.path("b"), family.path("a")), tmp_path / "split")
    assert_rounded_once(read_checkpoint(tmp_path / "split"), mean(family.state("b"), split), BFLOAT16)
    cuvee.merge({"merge_method": "slerp", "base_model": str(family.path("b")), "parameters": {"t": 1.0},
                 "models": [{"model": str(family.path("a"))}]}, tmp_path / "copied")  # fmt: skip
    assert_rounded_once(read_checkpoint(tmp_path / "copied"), {k: v.astype(float) for k, v in split.items()}, BFLOAT16)


def test_a_recipe_may_rename(tmp_path: Path) -> None:
    family = make_llama(tmp_path / "family")
    odd = {
        name.replace(".self_attn.", ".attention.").replace("model.", "core."): t
        for name, t in family.state("a").items()
    }
    save_file(odd, family.path("a") / "model.safetensors", {"format": "pt"})
    entries = recipe(family.path("b"), family.path("a"))
    entries["models"][1]["rename"] = {r"\.attention\.": ".self_attn."}
    report = cuvee.merge(entries, tmp_path / "out")
    original = {name.replace(".attention.", ".self_attn.").replace("core.", "model."): t for name, t in odd.items()}
    assert_rounded_once(read_checkpoint(tmp_path / "out"), mean(family.state("b"), original), np.dtype(np.float32))
    assert not report.dropped
    entries["models"][1]["rename"] = {r"\.attentoin\.": ".self_attn."}
    with pytest.raises(cuvee.CuveeError, match="found in no tensor name") as caught:
        cuvee.plan(entries)
    assert "models[1].rename" in (caught.value.where or "")
