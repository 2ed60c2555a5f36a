"""LoRA adapters made of arrays, written the way PEFT does, and read back as dense updates in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.checkpoints import Array, read_file, write_tensors

PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    modules: Mapping[str, int],
    sides: Mapping[str, tuple[int, int]],
    *,
    seed: int,
    alpha: float = 8.0,
    whole: Mapping[str, Array] | None = None,
    **config: Any,
) -> Path:
    """An adapter of random factors: module path -> rank, with (out, in) of each module in `sides`."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {PREFIX + name: values for name, values in (whole or {}).items()}
    for name, rank in modules.items():
        rows, columns = sides[name]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = rng.standard_normal((rank, columns)).astype(np.float32)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = rng.standard_normal((rows, rank)).astype(np.float32)
    first = next(iter(modules.values()))
    facts = {
        "peft_type": "LORA", "r": first, "lora_alpha": alpha, "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base", "target_modules": sorted({name.split(".")[-1] for name in modules}),
        "rank_pattern": {name: rank for name, rank in modules.items() if rank != first}, **config,
    }  # fmt: skip
    write_tensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    return folder


def factors(folder: Path, *, rslora: bool = False) -> dict[str, tuple[Array, Array, float]]:
    """A, B and the scaling of every module, worked out from the files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_file(folder / "adapter_model.safetensors")
    found = {}
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        rank = config["rank_pattern"].get(name, config["r"])
        alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
        assert down.shape[0] == rank, name
        scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        up = tensors[key.replace("lora_A", "lora_B")]
        found[name] = (down.astype(np.float64), up.astype(np.float64), scaling)
    return found


def dense(folder: Path, *, rslora: bool = False) -> dict[str, Array]:
    """The update of every module."""
    return {name: scaling * (up @ down) for name, (down, up, scaling) in factors(folder, rslora=rslora).items()}


def weighted_sum(updates: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> dict[str, Array]:
    """The weighted sum over adapters of every module's update."""
    total: dict[str, Array] = {}
    for update, weight in zip(updates, weights, strict=True):
        for name, values in update.items():
            total[name] = total.get(name, 0.0) + weight * values
    return total
