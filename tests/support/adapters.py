"""Adapters: made by hand with NumPy in PEFT's layout, or by PEFT itself together with what PEFT makes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.tiny_models import State


def write_adapter(folder: Path, state: State, **config: Any) -> Path:
    """An adapter with these tensors (`base_model.model.` goes before their names) and LoRA's config."""
    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{name}": np.ascontiguousarray(tensor) for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config))
    return folder


def lora_state(shapes: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 0) -> State:
    """Random A and B for each module of these shapes (out, in)."""
    random = np.random.default_rng(seed)
    state: State = {}
    for module, (out, inside) in shapes.items():
        state[f"{module}.lora_A.weight"] = (random.standard_normal((rank, inside)) * 0.3).astype(np.float32)
        state[f"{module}.lora_B.weight"] = (random.standard_normal((out, rank)) * 0.3).astype(np.float32)
    return state


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT warns of much that its users may want to know; here it is meant."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(base: Path, config: Any, folder: Path, *, seed: int = 1, vocabulary: int | None = None) -> Path:
    """What PEFT saves of an adapter on `base` whose every trained number was moved away from its start.

    Args:
        base: a checkpoint that transformers loads.
        config: PEFT's.
        folder: where it goes.
        seed: of the numbers.
        vocabulary: how many tokens the model is made to have before the adapter is put on it.

    """
    import torch
    from peft import get_peft_model

    with quiet_peft():
        torch.manual_seed(seed)
        model = load_model(base)
        if vocabulary is not None:
            model.resize_token_embeddings(vocabulary)
        adapted = get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        adapted.save_pretrained(folder)
    return folder


def merged_by_peft(
    base: Path, folders: list[Path], out: Path, *, prepare: Callable[[Any], None] = lambda model: None
) -> State:
    """What PEFT's merge_and_unload makes of the base and one adapter after the other, as saved."""
    from peft import PeftModel

    with quiet_peft():
        model = load_model(base)
        prepare(model)
        for folder in folders:
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
        model.save_pretrained(out)
    return load_file(out / "model.safetensors")


def load_model(folder: Path) -> Any:
    """The model in transformers, of the class that its config names."""
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder)


def save_model(config: Any, folder: Path) -> Path:
    """A model of random weights in float32, made from a transformers config."""
    import torch
    import transformers

    with quiet_peft():
        torch.manual_seed(0)
        model = getattr(transformers, config.architectures[0])(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)  # no zero biases, no ones
        model.save_pretrained(folder)
    return folder
