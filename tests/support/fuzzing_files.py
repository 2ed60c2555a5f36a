"""More targets for fuzzing: adapters, recipes for adapters, tokenizers and what lies beside them, renamed tensors."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import Any

import yaml
from hypothesis import strategies as st

from cuvee.adapters.adapter import open_adapter
from cuvee.errors import CuveeError
from cuvee.lora.merging import plan_adapter_merge
from cuvee.lora.peft_config import adapter_config
from cuvee.lora.recipe import read_adapter_recipe
from cuvee.options import MergeOptions
from cuvee.recipe.load import load_recipe
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.header import build_header
from cuvee.views.adapters import with_adapter
from cuvee.views.module_folders import with_module_folders
from cuvee.views.renamed import renamed
from cuvee.views.vocabulary import with_one_vocabulary
from support.fuzzing_target import Target, as_json, bytes_or, like, mutated, plan_pair
from support.memory import Memory

_WIDTH = 4
_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (6, _WIDTH),
    "model.layers.0.self_attn.q_proj.weight": (_WIDTH, _WIDTH),
    "model.layers.0.mlp.down_proj.weight": (_WIDTH, 2),
    "lm_head.weight": (6, _WIDTH),
}
_LORA: dict[str, tuple[int, ...]] = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (2, _WIDTH),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (_WIDTH, 2),
    "base_model.model.lm_head.weight": (6, _WIDTH),
}
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
          "hada_w1_a", "lokr_w1", "lokr_w2", "ia3_l", "weight", "base_layer.weight", "lora_E", "vera_lambda_b",
          "trainable_tokens_delta", "lora_B.bias", "modules_to_save.default.weight")  # fmt: skip
_MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head", "model.embed_tokens", "")


def _file(shapes: dict[str, tuple[int, ...]]) -> bytes:
    rows = []
    for name, shape in shapes.items():
        count = 4
        for length in shape:
            count *= length
        rows.append((name, "F32", shape, count))
    return build_header(rows, {"format": "pt"}) + bytes(sum(row[3] for row in rows))


_WEIGHTS, _ADAPTER = _file(_SHAPES), _file(_LORA)
_CONFIG = as_json({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 6, "hidden_size": 4})
_ADAPTER_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 4},
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.weight"],
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": {"embed_tokens": [1]},
    "base_model_name_or_path": "vineyard/base",
    "revision": "main",
    "init_lora_weights": True,
    "layers_to_transform": None,
}
_SIMPLE = as_json({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["lm_head"]})
_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": 5, "content": "<s>", "special": True, "normalized": False, "lstrip": False}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4}, "merges": [["a", "b"]]},
}
_SETTINGS: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "<s>", "lstrip": False},
    "added_tokens_decoder": {"5": {"content": "<s>", "special": True}},
    "additional_special_tokens": ["<s>"],
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "model_max_length": 10,
}
_UNION = {"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1}} for n in "ab"],
          "tokenizer_source": "union", "chat_template": "auto"}  # fmt: skip
_ADAPTER_RECIPE: dict[str, Any] = {
    "merge_method": "ties",
    "models": [{"model": "one", "parameters": {"weight": 0.5}}, {"model": "two"}],
    "parameters": {"density": 0.5, "weight": 1.0, "space": "core", "rank": 2},
}


@cache
def _base() -> Checkpoint:
    return open_checkpoint(Memory({"model.safetensors": _WEIGHTS, "config.json": _CONFIG}, "base"), "base")


def _with(config: bytes, weights: bytes) -> None:
    location = Memory({"adapter_config.json": config, "adapter_model.safetensors": weights}, "one")
    adapter = open_adapter(location, "one")
    plan_pair(_base(), with_adapter(_base(), adapter, "base+one"))
    with suppress(CuveeError):  # of some kinds that can be put on a base, none can be merged as adapters
        adapter_config(plan_adapter_merge(read_adapter_recipe(_ADAPTER_RECIPE), [adapter, adapter]).config)


def use_adapter_config(data: bytes) -> None:
    """An adapter_config.json: its adapter put on a base, and planned."""
    _with(data, _ADAPTER)


def use_adapter_file(data: bytes) -> None:
    """An adapter's tensors: put on a base, and planned."""
    _with(_SIMPLE, data)


def merge_adapters(data: bytes) -> None:
    """A recipe for adapters: read, and planned for as many copies of one adapter."""
    recipe = read_adapter_recipe(data.decode("utf-8", errors="replace") + "\n")
    location = Memory({"adapter_config.json": as_json({"peft_type": "LORA", "r": 2, "lora_alpha": 4}),
                       "adapter_model.safetensors": _file(dict(list(_LORA.items())[:2]))}, "one")  # fmt: skip
    plan_adapter_merge(recipe, [open_adapter(location, f"copy {i}") for i in range(min(len(recipe.adapters), 5))])


def use_rename(data: bytes) -> None:
    """The `rename` of a model: applied to a checkpoint's names."""
    try:
        wanted = json.loads(data)
    except ValueError:
        return
    first, second = ({"model": name, "parameters": {"weight": 1}} for name in "ab")
    recipe, _ = load_recipe({"merge_method": "linear", "models": [first, {**second, "rename": wanted}]})
    for rename in recipe.renames.values():
        found = renamed(_base(), rename)
        plan_pair(found, found)


def unite_tokenizers(files: dict[str, bytes]) -> None:
    """A tokenizer's files: united with another tokenizer's."""
    recipe, _ = load_recipe(_UNION)
    usual = {"model.safetensors": _WEIGHTS, "config.json": _CONFIG, "tokenizer.json": as_json(_TOKENIZER)}
    opened = [
        open_checkpoint(Memory({**usual, **more}, name), name) for name, more in zip("ab", (files, {}), strict=True)
    ]
    united = with_one_vocabulary(recipe, dict(zip(recipe.models(), opened, strict=True)), MergeOptions())
    if united.output.tokenizer is not None:
        _ = united.output.tokenizer.document


def use_tokenizer(data: bytes) -> None:
    """A tokenizer.json."""
    unite_tokenizers({"tokenizer.json": data})


def use_tokenizer_config(data: bytes) -> None:
    """A tokenizer_config.json."""
    unite_tokenizers({"tokenizer_config.json": data})


def use_side_files(data: bytes) -> None:
    """Whatever else is read beside the weights, all with the same content."""
    unite_tokenizers(dict.fromkeys(("added_tokens.json", "chat_template.json", "special_tokens_map.json"), data))
    folder = {"model.safetensors": _WEIGHTS, "2_Dense/model.safetensors": _WEIGHTS, "modules.json": data}
    with_module_folders(open_checkpoint(Memory(folder, "a"), "a"))


@st.composite
def _adapter_files(draw: st.DrawFn) -> bytes:
    """Good files with an adapter's names in all combinations, and shapes that may fit."""
    names = st.builds("base_model.model.{}.{}".format, st.sampled_from(_MODULES), st.sampled_from(_PARTS))
    shape = st.lists(st.sampled_from([0, 1, 2, _WIDTH, 6]), max_size=3).map(tuple)
    return _file(draw(st.dictionaries(names, shape, max_size=6)))


_RENAMES = st.dictionaries(
    st.sampled_from(["model", r"layers\.(\d+)", "^", "$", "(", r"\.", "weight", "(a|b)*", "[", "(?P<n>m)"])
    | st.text(max_size=6),
    st.sampled_from(["", "x", r"\1", r"\g<n>", r"\g<0>", "\\", "model"]) | st.integers() | st.text(max_size=4),
    max_size=3,
).map(as_json)

_seed_adapter, _seed_tokenizer, _seed_settings = map(as_json, (_ADAPTER_CONFIG, _TOKENIZER, _SETTINGS))
_seed_recipe = yaml.safe_dump(_ADAPTER_RECIPE).encode()

FILE_TARGETS: tuple[Target, ...] = (
    Target("adapter config", use_adapter_config,
           bytes_or(like(_ADAPTER_CONFIG).map(as_json), mutated((_seed_adapter,))),
           (_SIMPLE,)),
    Target("adapter file", use_adapter_file, bytes_or(_adapter_files(), mutated((_ADAPTER,))), (_ADAPTER,)),
    Target("recipe for adapters", merge_adapters,
           bytes_or(like(_ADAPTER_RECIPE).map(as_json), mutated((_seed_recipe,))), (_seed_recipe,)),
    Target("rename", use_rename, bytes_or(_RENAMES), (as_json({r"model\.": "new."}),)),
    Target("tokenizer.json", use_tokenizer,
           bytes_or(like(_TOKENIZER).map(as_json), mutated((_seed_tokenizer,))), (_seed_tokenizer,)),
    Target("tokenizer_config.json", use_tokenizer_config,
           bytes_or(like(_SETTINGS).map(as_json), mutated((_seed_settings,))), (_seed_settings,)),
    Target("files beside them", use_side_files,
           bytes_or(like({"<s>": 5, "chat_template": "x"}).map(as_json)), (as_json({"<s>": 5}),)),
)  # fmt: skip
