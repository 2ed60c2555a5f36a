"""Tiny random checkpoints: real families as transformers writes them, and a Llama made of NumPy arrays alone.

Each comes as a `Family` of a base and three siblings, which are the base plus noise. What is merged from them, and what
should come out, is the tests' affair.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

State = dict[str, np.ndarray[Any, Any]]

VOCABULARY = 128
LAYERS = 3
NAMES = ("base", "a", "b", "c")
BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
# Bits after the point, and the exponent of the smallest normal number.
_FORMATS = {"float64": (52, -1022), "float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}


@dataclass(frozen=True)
class Family:
    """A base and its siblings, each a folder named after its model."""

    name: str
    folder: Path
    dtype: np.dtype[Any]

    def path(self, model: str) -> Path:
        return self.folder / model

    def state(self, model: str) -> State:
        """The model's tensors as they are stored."""
        return load_checkpoint(self.path(model))

    def exact(self, model: str) -> State:
        """The model's tensors in float64."""
        return {name: tensor.astype(np.float64) for name, tensor in self.state(model).items()}

    def config(self, model: str = "base") -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.path(model) / "config.json").read_text())
        return config


@dataclass(frozen=True)
class _Kind:
    """How transformers makes one architecture small."""

    config: str
    options: Mapping[str, Any]
    dtype: np.dtype[Any]
    layer_key: str = "num_hidden_layers"


def _llama_like(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return {**sizes, "max_position_embeddings": 64, **more}


_GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
_FLOAT32, _FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
_KINDS: dict[str, _Kind] = {
    "llama": _Kind("LlamaConfig", _llama_like(num_key_value_heads=2, tie_word_embeddings=False), _FLOAT32),
    "llama-tied": _Kind("LlamaConfig", _llama_like(num_key_value_heads=2, tie_word_embeddings=True), _FLOAT32),
    "mistral": _Kind("MistralConfig", _llama_like(num_key_value_heads=2, tie_word_embeddings=False), BFLOAT16),
    "qwen2": _Kind("Qwen2Config", _llama_like(num_key_value_heads=2, tie_word_embeddings=True), BFLOAT16),
    "qwen2-untied": _Kind("Qwen2Config", _llama_like(num_key_value_heads=2, tie_word_embeddings=False), _FLOAT32),
    "gpt-neox": _Kind("GPTNeoXConfig", _llama_like(), _FLOAT16),
    "gpt2": _Kind("GPT2Config", _GPT2, _FLOAT32, layer_key="n_layer"),
    "phi": _Kind("PhiConfig", _llama_like(), _FLOAT32),
    "gemma": _Kind("GemmaConfig", _llama_like(num_key_value_heads=1, head_dim=8), _FLOAT32),
}
ARCHITECTURES = tuple(_KINDS)


def layer_key(name: str) -> str:
    """The config key that holds the architecture's number of layers."""
    return _KINDS[name].layer_key


def make_architecture(name: str, folder: Path) -> Family:
    """A family of one of `ARCHITECTURES`: the base as transformers saves it."""
    import torch
    import transformers

    kind = _KINDS[name]
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = getattr(transformers, kind.config)(**kind.options, **ids)
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config)
    base = folder / "base"
    model.to(getattr(torch, kind.dtype.name)).save_pretrained(base)
    family = Family(name, folder, kind.dtype)
    for number, sibling in enumerate(NAMES[1:], 1):
        shutil.copytree(base, folder / sibling)
        save_file(_perturbed(family.state("base"), number), folder / sibling / "model.safetensors", {"format": "pt"})
    return family


def make_llama(
    folder: Path,
    *,
    dtype: np.dtype[Any] = _FLOAT32,
    layers: int = LAYERS,
    names: tuple[str, ...] = NAMES,
    hidden: int = 16,
    vocabulary: int = VOCABULARY,
) -> Family:
    """A family of untied Llamas with tokenizer and side files, made without torch."""
    state = llama_state(layers=layers, hidden=hidden, vocabulary=vocabulary)
    for number, name in enumerate(names):
        values = state if number == 0 else _perturbed(state, number)
        save_llama(folder / name, {key: value.astype(dtype) for key, value in values.items()}, layers=layers)
    return Family("llama", folder, dtype)


def llama_state(*, layers: int = LAYERS, hidden: int = 16, vocabulary: int = VOCABULARY, seed: int = 7) -> State:
    """Random float32 weights of a Llama with two heads and one key-value head."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return (random.standard_normal((rows, columns)) * 0.3).astype(np.float32)

    def norm() -> np.ndarray[Any, Any]:
        return (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)

    inner = hidden * 2
    state = {"model.embed_tokens.weight": matrix(vocabulary, hidden)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        prefix = f"model.layers.{layer}."
        state |= {f"{prefix}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        state |= {f"{prefix}{name}_layernorm.weight": norm() for name in ("input", "post_attention")}
    return state | {"model.norm.weight": norm(), "lm_head.weight": matrix(vocabulary, hidden)}


def save_llama(folder: Path, state: State, *, layers: int = LAYERS, config: Mapping[str, Any] | None = None) -> None:
    """Writes a whole checkpoint around `state`: weights, config, tokenizer and what else lies in a repository."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    vocabulary, hidden = state["model.embed_tokens.weight"].shape
    facts = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": vocabulary, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2, "max_position_embeddings": 64,
        "torch_dtype": state["model.embed_tokens.weight"].dtype.name, **(config or {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts, indent=2))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    (folder / "tokenizer.json").write_text(_tokenizer(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2"}')
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "README.md").write_text("# Not to be copied")
    (folder / "modeling_custom.py").write_text("print('code of a stranger')")


def load_checkpoint(folder: Path) -> State:
    """All tensors of the safetensors files in a folder, read by the safetensors library."""
    state: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = load_file(file)
        assert not state.keys() & found.keys()
        state |= found
    return state


def assert_rounded_once(got: State, exact: State, dtype: np.dtype[Any]) -> None:
    """Every tensor of `got` is of `dtype` and within one rounding of the float64 values `exact`.

    Half a unit in the last place for the rounding; and for float32 arithmetic before it a few units of float32 in
    terms of the tensor's largest value (sums of a handful of terms no larger than that).
    """
    assert got.keys() == exact.keys()
    bits, lowest = _FORMATS[dtype.name]
    for name, tensor in got.items():
        want = exact[name]
        assert tensor.dtype == dtype, name
        assert tensor.shape == want.shape, name
        values = tensor.astype(np.float64)
        largest = np.maximum(abs(values), abs(want))
        with np.errstate(divide="ignore"):
            exponent = np.maximum(np.floor(np.log2(largest)), lowest)
        bound = 0.5 * np.exp2(exponent - bits) + 2.0**-21 * abs(want).max(initial=0.0)
        worst = int(np.argmax(abs(values - want) - bound))
        assert (abs(values - want) <= bound).all(), (
            f"{name}[{worst}]: {values.flat[worst]!r}, not {want.flat[worst]!r} (within {bound.flat[worst]!r})"
        )


def recipe(text: str, family: Family, **values: object) -> str:
    """`text` with every `@name` replaced by the path of that model of the family, and `{key}` by a value."""
    for name in sorted(NAMES, key=len, reverse=True):
        text = text.replace(f"@{name}", str(family.path(name)))
    for key, value in values.items():
        text = text.replace("{" + key + "}", str(value))
    return text


Maker = Callable[[str], Family]


def _perturbed(state: State, seed: int) -> State:
    """The state plus noise of a tenth of its size: far enough that slerp follows an arc."""
    random = np.random.default_rng(seed)
    found: State = {}
    for name, tensor in state.items():
        wide = tensor.astype(np.float32)
        scale = 0.3 * (float(np.sqrt(np.mean(wide * wide))) or 0.1)
        found[name] = (wide + scale * random.standard_normal(wide.shape)).astype(tensor.dtype)
    return found


def _tokenizer(vocabulary: int) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str()
