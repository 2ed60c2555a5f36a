"""Checkpoints, recipes and plans for the tests of planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.planning.build import PlanSettings, build_plan
from cuvee.planning.ops import Plan
from cuvee.recipe.load import load_recipe
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.reference import ModelRef
from support.checkpoints import Array, write_checkpoint

LAYER = ("self_attn.q.weight", "self_attn.o.weight", "mlp.up.weight", "mlp.down.weight")


def llama(layers: int = 3, *, head: bool = True, width: int = 4, dtype: Any = np.float32) -> dict[str, Array]:
    """A model's tensors, each with values of its own."""
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.{rest}" for i in range(layers) for rest in LAYER),
             "model.norm.weight", *(["lm_head.weight"] if head else [])]  # fmt: skip
    return {name: np.full((width, 3), number, dtype) for number, name in enumerate(names)}


class Models:
    """A folder of checkpoints, opened by the names that a recipe uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name: str,
        tensors: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a checkpoint; a Llama of three layers unless told otherwise."""
        default = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "tie_word_embeddings": False}
        write_checkpoint(self.folder / name, tensors or llama(), default if config is None else config)

    def open(self, recipe: Mapping[str, Any]) -> tuple[Recipe, dict[ModelRef, Checkpoint]]:
        """The loaded recipe and its checkpoints."""
        loaded, _ = load_recipe(recipe)
        return loaded, {ref: open_checkpoint(Directory(self.folder / ref.path), str(ref)) for ref in loaded.models()}

    def plan(self, recipe: Mapping[str, Any], *, max_shard_bytes: int = 1 << 40, allow_crimes: bool = False) -> Plan:
        """The plan of a recipe."""
        loaded, checkpoints = self.open(recipe)
        return build_plan(loaded, checkpoints, PlanSettings(max_shard_bytes, 7, allow_crimes, "1.0"))


def linear(*names: str, **more: Any) -> dict[str, Any]:
    """A recipe for the mean of models."""
    return {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1 + i}} for i, name in enumerate(names)],
        **more,
    }


def stack(*pieces: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    """A recipe that stacks ranges of layers."""
    slices = [{"sources": [{"model": name, "layer_range": [start, stop]}]} for name, start, stop in pieces]
    return {"merge_method": "passthrough", "slices": slices, **more}
