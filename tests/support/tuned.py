"""Tiny models of real families with fine-tunes of them, and what PEFT makes of a base and an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Change = Callable[[str, Any, Any], Any]
"""Tensor name, its torch values, a torch generator -> what to add to it (None: nothing)."""

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
_SMALL = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SMALL, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {**_SMALL, "tie_word_embeddings": True}),
    "gpt_oss": ("GptOssConfig", {**_SMALL, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8,
                                 "tie_word_embeddings": False}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SMALL, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
                                     "moe_intermediate_size": 20, "tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}  # fmt: skip


def everything(name: str, values: Any, generator: Any) -> Any:
    """Noise on every tensor, so that nothing is left out by chance."""
    import torch

    return 0.02 * torch.randn(values.shape, generator=generator)


def make_pair(folder: Path, family: str, change: Change = everything, *, tokens: int = 0) -> tuple[Path, Path]:
    """A base and its fine-tune: `change` added to every tensor, the vocabulary grown by `tokens`."""
    import torch
    import transformers

    name, options = CONFIGS[family]
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**options, **_IDS))
    base, tuned = folder / "base", folder / "tuned"
    model.save_pretrained(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        if tokens:
            model.resize_token_embeddings(options["vocab_size"] + tokens, mean_resizing=False)
        for key, values in model.named_parameters():
            if (added := change(key, values, generator)) is not None:
                values.add_(added)
    model.save_pretrained(tuned)
    return base, tuned


def load(folder: Path, rows: int | None = None) -> Any:
    """The model in `folder`, its vocabulary resized to `rows` if given."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def with_adapter(base: Path, adapter: Path, rows: int | None = None) -> Any:
    """The base with the adapter on it, as PEFT loads it; what PEFT says of missing weights fails the test."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(load(base, rows), adapter)


def merged(model: Any) -> dict[str, Array]:
    """All parameters after PEFT has merged the adapter into them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights(model.merge_and_unload())


def weights(model: Any) -> dict[str, Array]:
    """All parameters in float64, tied ones under each of their names."""
    return {key: value.detach().double().numpy() for key, value in model.state_dict().items()}


def logits(model: Any) -> Array:
    """What a model makes of a fixed text."""
    import torch

    model.eval()
    with torch.no_grad():
        found: Array = model(torch.arange(3, 19)[None]).logits.double().numpy()
    return found


def relative_error(base: dict[str, Array], wanted: dict[str, Array], got: dict[str, Array]) -> float:
    """The size of what `got` lacks of the change from `base` to `wanted`, relative to the change."""
    change = sum(float(np.square(wanted[key] - base[key]).sum()) for key in wanted)
    missing = sum(float(np.square(wanted[key] - got[key]).sum()) for key in wanted)
    return float(np.sqrt(missing / change))
