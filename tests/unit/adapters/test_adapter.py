"""Adapters opened: numbers from the config, and everything that can be wrong with config or tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.adapters.adapter import open_adapter
from cuvee.adapters.config import AdapterConfig, read_config
from cuvee.adapters.facts import facts_of
from cuvee.adapters.place import is_adapter
from cuvee.errors import CheckpointError
from cuvee.tensors.location import Directory
from support.adapters import lora_state, write_adapter

ONE = {"model.layers.0.self_attn.q_proj": (6, 8)}


def config(**values: Any) -> AdapterConfig:
    return read_config(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6} | values).encode(), "mine")


def test_scaling() -> None:
    assert config().scaling_of("q") == 1.5
    assert config(use_rslora=True).scaling_of("q") == 3.0
    assert config(peft_type="LOHA", alpha=2).scaling_of("q") == 0.5
    assert config(peft_type="IA3").scaling_of("q") == 1.0
    assert config(peft_type="VERA").scaling_of("q") == 1.0


def test_patterns_match_the_end_of_a_path() -> None:
    given = config(rank_pattern={"layers.1.*q": 2, "v": 8}, alpha_pattern={"v": 4})
    assert [given.rank_of(path) for path in ("model.layers.1.attn.q", "model.layers.2.attn.q", "a.v", "v", "av")] == [
        2, 4, 8, 8, 4,
    ]  # fmt: skip
    assert given.scaling_of("a.v") == 0.5
    assert given.scaling_of("model.layers.1.attn.q") == 3.0
    assert math.isclose(config(use_rslora=True, rank_pattern={"q": 9}).scaling_of("q"), 2.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "OFT"}, "type OFT"),
        ({"peft_type": "PREFIX_TUNING"}, "type PREFIX_TUNING"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 0}, "rank"),
        ({"r": "four"}, "r that is not a number"),
        ({"r": 2.5}, "r that is not a number"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"rank_pattern": ["q"]}, "rank_pattern"),
        ({"rank_pattern": {"q(": 2}}, "no regular expression"),
        ({"alpha_pattern": {"q": "x"}}, "alpha_pattern"),
        ({"trainable_token_indices": ["x"]}, "token indices"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by pissa"),
        ({"peft_type": "LORA", "lora_alpha": 10**400}, "lora_alpha that is not a number"),
        ({"peft_type": "LORA", "r": float("nan")}, "r that is not a number"),
        ({"peft_type": "LORA", "alpha_pattern": {"q": 10**400}}, "not a table of numbers"),
        ({"peft_type": "LORA", "rank_pattern": {"q": 0.5}}, "not a table of numbers"),
        ({"peft_type": "LORA", "rank_pattern": {"(?i)q": 2}}, "no regular expression"),
        ({"peft_type": "LORA", "target_parameters": 5}, "target_parameters that is not a list of names"),
        ({"peft_type": "LORA", "modules_to_save": {"a": 1}}, "modules_to_save that is not a list of names"),
        ({"peft_type": "LORA", "target_modules": [{}]}, "target_modules that is not a list of names"),
        ({"peft_type": "ADALORA", "init_r": "many"}, "init_r that is not a number"),
    ],
    ids=str,
)
def test_refused_configs(values: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        config(**values)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_corrupt_configs(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json of mine is not"):
        read_config(text, "mine")


def test_opened(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", lora_state(ONE | {"lm_head": (9, 8)}) | {"norm.weight": np.ones(3)}, r=4)
    adapter = open_adapter(Directory(folder), "mine")
    module = adapter.modules["model.layers.0.self_attn.q_proj"]
    assert module.a is not None
    assert module.b is not None
    assert (module.a.shape, module.b.shape, module.rank, module.scaling) == ((4, 8), (6, 4), 4, 2.0)
    assert list(adapter.whole) == ["norm.weight"]
    assert adapter.weight_file == ("adapter_model.safetensors", f"{folder}/adapter_model.safetensors")
    facts = facts_of(adapter)
    assert facts.parameters == 4 * 8 + 6 * 4 + 4 * 8 + 9 * 4 + 3
    assert facts.size == 4 * (facts.parameters - 3) + 8 * 3
    assert facts.dtypes == ("float32", "float64")
    groups = {group.name: (group.count, group.layers, group.ranks, group.shapes) for group in facts.groups}
    assert groups == {"lm_head": (1, (), (4,), ((9, 8),)), "q_proj": (1, (0,), (4,), ((6, 8),))}


def test_what_is_an_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", lora_state(ONE))
    assert is_adapter(Directory(folder))
    (folder / "tokenizer.json").touch()
    assert is_adapter(Directory(folder))
    (folder / "model.safetensors").touch()
    assert not is_adapter(Directory(folder))


def broken(tmp_path: Path, change: str) -> Path:
    state = lora_state(ONE)
    a, b = (f"model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")
    extra: dict[str, Any] = {}
    if change == "rank of the config":
        extra = {"r": 8}
    elif change == "no magnitudes":
        extra = {"use_dora": True}
    elif change == "no B":
        del state[b]
    elif change == "ranks of A and B":
        state[b] = state[b][:, :3]
    elif change == "empty A":
        state[a] = state[a][:0]
    elif change == "flat A":
        state[a] = state[a].reshape(-1)
    elif change == "integers":
        state[a] = state[a].astype(np.int32)
    elif change == "two adapters":
        state[a.replace(".weight", ".default.weight")] = state[a]
    elif change == "nothing":
        state = {}
    folder = write_adapter(tmp_path / "a", state, **extra)
    if change == "no weights":
        (folder / "adapter_model.safetensors").unlink()
    elif change == "cut short":
        raw = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(raw[:-8])
    elif change == "no config":
        (folder / "adapter_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rank of the config", "rank of model.layers.0.self_attn.q_proj"),
        ("no magnitudes", "lacks DoRA's magnitude vector of model.layers.0"),
        ("no B", "lacks LoRA's B of model.layers.0"),
        ("ranks of A and B", "do not fit each other"),
        ("empty A", "do not fit each other"),
        ("flat A", "do not fit each other"),
        ("integers", "dtype I32"),
        ("two adapters", "twice"),
        ("nothing", "holds no tensors"),
        ("no weights", "holds no weights"),
        ("cut short", "not a valid safetensors file"),
        ("no config", "is not an adapter"),
    ],
)
def test_broken_adapters(change: str, words: str, tmp_path: Path) -> None:
    folder = broken(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        open_adapter(Directory(folder), "mine")
