"""What is fuzzed: one function of bytes for each parser of strangers' input, and strategies that make such bytes.

A function returns whether its input was taken; a refusal is a `CuveeError`. Anything else that it raises is a find.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import yaml
from hypothesis import strategies as st

from cuvee.methods.registry import get_method, method_names
from cuvee.options import parse_size
from cuvee.planning.build import build_plan
from cuvee.planning.machine import parse_machine
from cuvee.publish.card import CardInput, model_card
from cuvee.publish.config import merged_config_text
from cuvee.publish.side_files import choose_side_files
from cuvee.recipe.load import load_recipe
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.header import build_header, read_header
from cuvee.tensors.reference import ModelRef
from support.fuzzing_files import FILE_TARGETS
from support.fuzzing_target import (
    JSON,
    NAMES,
    SCALARS,
    SETTINGS,
    TEXT,
    Target,
    as_json,
    bytes_or,
    like,
    linear,
    mutated,
    plan_of,
)
from support.memory import Memory

# --- what is run -------------------------------------------------------------------------------------------------


def parse_header(data: bytes) -> None:
    """A safetensors file."""
    read_header(lambda start, stop: data[start:stop], len(data), "model.safetensors")


def plan_headers(data: bytes) -> None:
    """A safetensors file as a whole checkpoint, planned with a sibling: names reach the layout."""
    checkpoint = open_checkpoint(Memory({"model.safetensors": data, "config.json": _CONFIG}, "a"), "a")
    plan_of(linear(), checkpoint, checkpoint)


def open_index(data: bytes) -> None:
    """An index beside good shards."""
    open_checkpoint(Memory({**_SHARDS, "model.safetensors.index.json": data}), "a")


def use_config(data: bytes) -> None:
    """A config.json: planned with, edited, and told of in the card."""
    base = open_checkpoint(Memory({"model.safetensors": _FILE, "config.json": data}, "a"), "a")
    other = open_checkpoint(Memory({"model.safetensors": _FILE, "config.json": _CONFIG}, "b"), "b")
    for recipe in (linear(), _sliced()):
        plan = plan_of(recipe, base, other)
        edits = {tuple(key.split(".")): value for key, value in plan.config_edits.items()}
        merged_config_text(base.config_text or "", dtype="bfloat16", edits=edits, vocab_size=7)
        model_card(
            "out",
            method=get_method("linear"),
            inputs=[CardInput(ModelRef("a"), "a")],
            recipe_text=recipe.text,
            seed=0,
            architectures=base.config.get("architectures") or (),
            version="0",
        ).encode()


def read_recipe(data: bytes) -> None:
    """A recipe; where it is one for two models, planned."""
    recipe, _ = load_recipe(data.decode("utf-8", errors="replace") + "\n")
    checkpoint = open_checkpoint(Memory({"model.safetensors": _FILE, "config.json": _CONFIG}, "a"), "a")
    opened = {ref: checkpoint for ref in recipe.models() if not ref.adapters}
    if len(opened) == len(recipe.models()):
        build_plan(recipe, opened, SETTINGS)


def read_words(data: bytes) -> None:
    """Sizes, machines and model references, as options and recipes spell them."""
    text = data.decode("utf-8", errors="replace")
    ModelRef.parse(text)
    (parse_machine if "=" in text else parse_size)(text)


def name_files(data: bytes) -> None:
    """File names of a checkpoint: which go along."""
    files = {name: b"x" for name in data.decode("utf-8", errors="replace").split("\n") if name}
    choose_side_files(Memory({"config.json": b"{}", **files}))


@cache
def _sliced() -> Recipe:
    pieces = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ab"]
    return load_recipe({"merge_method": "passthrough", "slices": pieces})[0]


# --- what it is run with -----------------------------------------------------------------------------------------

_CODES = ("F32", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "U8")


def _file(names: tuple[str, ...] = NAMES) -> bytes:
    return build_header([(name, "BF16", (2, 2), 8) for name in names], {"format": "pt"}) + bytes(8 * len(names))


_FILE = _file()
_SHARDS = {f"model-{i}.safetensors": _file((name,)) for i, name in enumerate(NAMES)}
_INDEX = {
    "metadata": {"total_size": 32},
    "weight_map": {name: f"model-{i}.safetensors" for i, name in enumerate(NAMES)},
}
_CONFIG = json.dumps(
    {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "torch_dtype": "float16",
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"], "vocab_size": 9},
        "tie_word_embeddings": False,
    }
).encode()


def _as_file(header: Any, data: bytes, slip: int) -> bytes:
    raw = json.dumps(header).encode()
    return max(len(raw) + slip, 0).to_bytes(8, "little") + raw + data


_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(_CODES) | SCALARS,
        "shape": st.lists(st.integers(0, 3) | SCALARS, max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 24) | SCALARS, min_size=2, max_size=2) | JSON,
    }
)
_HEADERS = st.builds(
    _as_file,
    st.dictionaries(TEXT, _ENTRY | JSON, max_size=4) | JSON,
    st.binary(max_size=24),
    st.sampled_from([0, 0, 0, 0, -1, 1, 7]),
)


@st.composite
def _true_headers(draw: st.DrawFn) -> bytes:
    """Good files with names of any kind, whose layout somebody must make sense of."""
    part = st.sampled_from(
        ["model", "layers", "h", "0", "1", "01", "9" * 30, "٣", "²", "weight", "lm_head", "a" * 2000, "7" * 4400, ""]
    )
    names = draw(st.lists(st.lists(part, max_size=6).map(".".join) | TEXT, max_size=6, unique=True))
    names = [name for name in names if name != "__metadata__" and "\ud800" not in name]
    rows = [(n, draw(st.sampled_from(_CODES)), tuple(draw(st.lists(st.integers(0, 3), max_size=3)))) for n in names]
    return _laid_out(rows)


def _laid_out(rows: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    sizes = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2}
    full = []
    for name, code, shape in rows:
        count = sizes.get(code, 1)
        for length in shape:
            count *= length
        full.append((name, code, shape, count))
    return build_header(full, {}) + bytes(sum(row[3] for row in full))


_RECIPES = (
    {
        "merge_method": "ties",
        "base_model": "a",
        "models": [
            {"model": "b", "parameters": {"weight": [0, 0.5, 1], "density": 0.5}},
            {
                "model": {"model": {"path": "c", "revision": "main"}},
                "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
            },
        ],
        "parameters": {"normalize": True, "int8_mask": False, "lambda": 1.0},
        "dtype": "bfloat16",
        "tokenizer_source": "union",
    },
    {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 1], "parameters": {"scale": 0.5}}]},
            {"sources": [{"model": "b", "layer_range": [0, 2]}]},
        ],
        "out_dtype": "float16",
    },
    {
        "merge_method": "slerp",
        "modules": {
            "default": {
                "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 2]}]}]
            }
        },
        "base_model": "a",
        "parameters": {"t": [0, 0.5, 1]},
        "tokenizer": {"source": "union", "tokens": {"<s>": {"source": "a", "force": True}}, "pad_to_multiple_of": 8},
        "chat_template": "auto",
    },
)
_RECIPE_SEEDS = (
    *(yaml.safe_dump(recipe).encode() for recipe in _RECIPES),
    b"\n".join(
        [
            b"merge_method: linear",
            b"models:",
            b"  - {model: a, parameters: &a {weight: 1.0}}",
            b"  - {model: b, parameters: {<<: *a}}",
        ]
    ),
    b"merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n",
)


def _recipe_like() -> st.SearchStrategy[bytes]:
    one_method = st.sampled_from(method_names())
    shaped = st.one_of(*map(like, _RECIPES)).flatmap(
        lambda recipe: (
            one_method.map(lambda name: {**recipe, "merge_method": name})
            if isinstance(recipe, dict)
            else st.just(recipe)
        )
    )
    return (shaped | st.one_of(*map(like, _RECIPES))).map(as_json)


_WORDS = st.one_of(
    st.text(alphabet="0123456789.kKmMgGtTbBiIeE+-_ ", max_size=12),
    st.text(alphabet="read,write=cores nodes0123456789.GMB/s", max_size=40),
    st.sampled_from(["9" * 400 + "B", "1e400", "read=3GB/s,write=1GB/s,cores=64,nodes=8", "0.0000000001B", "٣GB"]),
    TEXT,
)

_TARGETS: tuple[Target, ...] = (
    Target("header", parse_header, bytes_or(_HEADERS, mutated((_FILE,))), (_FILE, _as_file({}, b"", 0))),
    Target("header, planned", plan_headers, bytes_or(_true_headers(), mutated((_FILE,))), (_FILE,)),
    Target(
        "index",
        open_index,
        bytes_or(like(_INDEX).map(as_json), mutated((as_json(_INDEX),))),
        (as_json(_INDEX),),
    ),
    Target(
        "config",
        use_config,
        bytes_or(like(json.loads(_CONFIG)).map(as_json), mutated((_CONFIG,))),
        (_CONFIG,),
    ),
    Target("recipe", read_recipe, bytes_or(_recipe_like(), mutated(_RECIPE_SEEDS)), _RECIPE_SEEDS),
    Target(
        "option and reference",
        read_words,
        _WORDS.map(lambda text: text.encode(errors="replace")),
        (b"5GiB", b"read=3GB/s,cores=2"),
    ),
    Target(
        "file names",
        name_files,
        st.lists(
            TEXT
            | st.sampled_from(
                [
                    "tokenizer.json",
                    "../tokenizer.json",
                    "1_Pooling/config.json",
                    "modules.json",
                    "a\\LICENSE",
                    "C:LICENSE",
                    "model.py",
                ]
            )
        ).map(lambda names: "\n".join(names).encode(errors="replace")),
        (b"tokenizer.json\nLICENSE\nmodeling.py",),
    ),
)

TARGETS: tuple[Target, ...] = (*_TARGETS, *FILE_TARGETS)
