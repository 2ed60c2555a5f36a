"""Merges of many kinds, each a recipe of small checkpoints of its own: for tests that hold of any merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from support.adapters import lora_state, write_adapter
from support.tiny_models import make_llama, recipe
from support.vocabularies import GRAPE, WINE, save_model, tokenizer

_SURVEYED = """
merge_method: ties
base_model: "@base"
models: [{model: "@a"}, {model: "@b"}]
parameters: {density: 0.4, weight: 0.7, trim_scope: model}
"""
_FOLDERS = """
models: [{model: "@a", parameters: {weight: 0.3}}, {model: "@b", parameters: {weight: 0.7}}]
merge_method: linear
"""
_ADAPTERS = """
merge_method: dare_ties
base_model: "@base"
models: [{model: "@base+ADAPTERS/one"}, {model: "@base+ADAPTERS/two"}, {model: "@a"}]
parameters: {density: 0.5, weight: 0.5}
"""
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]


def make_kinds(folder: Path) -> dict[str, str]:
    """Recipes by the kind of merge that they ask for, their checkpoints in `folder`.

    surveyed: a method is prepared for the whole model. folders: weights lie in subfolders too. vocabularies: two
    tokenizers are united. adapters: some of the inputs are.
    """
    family = make_llama(folder / "family", names=("base", "a", "b"))
    return {
        "surveyed": recipe(_SURVEYED, family),
        "folders": _folders(folder / "folders"),
        "vocabularies": _vocabularies(folder / "vocabularies"),
        "adapters": recipe(_ADAPTERS, family).replace("ADAPTERS", str(_adapters(folder / "adapters"))),
    }


def _folders(folder: Path) -> str:
    family = make_llama(folder, names=("a", "b"))
    for seed, name in enumerate("ab"):
        dense = family.path(name) / "2_Dense"
        dense.mkdir()
        (dense / "config.json").write_text("{}")
        (family.path(name) / "modules.json").write_text(json.dumps(_MODULES))
        values = np.random.default_rng(seed).standard_normal((2, 40, 16), np.float32)
        save_file({"linear.weight": values[0], "linear.bias": values[1, :, 0].copy()}, dense / "model.safetensors")
    return recipe(_FOLDERS, family)


def _vocabularies(folder: Path) -> str:
    for seed, (name, text) in enumerate({"a": WINE, "b": GRAPE}.items()):
        save_model(folder / name, tokenizer("byte-level BPE", text, 300), seed=seed)
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in "ab"]
    return json.dumps({"merge_method": "linear", "models": models, "tokenizer_source": "union"}) + "\n"


def _adapters(folder: Path) -> Path:
    shapes = {f"model.layers.{layer}.self_attn.{part}_proj": (16, 16) for layer in range(3) for part in "qo"}
    for seed, name in enumerate(("one", "two")):
        write_adapter(folder / name, lora_state(shapes, seed=seed))
    return folder
