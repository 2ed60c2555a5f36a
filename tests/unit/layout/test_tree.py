from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.layout.tree import Row, Tree, ranges, tree_of
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from support.checkpoints import Array, write_checkpoint

CONFIG = {"architectures": ["M"], "num_hidden_layers": 4, "vocab_size": 9, "tie_word_embeddings": True}


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def hybrid() -> dict[str, Array]:
    """Four layers, the third of another kind, and one beyond the config's count."""
    found = {"model.embed_tokens.weight": zeros(9, 4), "model.norm.weight": zeros(4)}
    for layer in range(5):
        kind = "mixer" if layer == 2 else "self_attn"
        found |= {f"model.layers.{layer}.{kind}.{part}.weight": zeros(4, 4) for part in "qkvo"}
        found |= {f"model.layers.{layer}.mlp.experts.{i}.up.weight": zeros(8, 4) for i in range(3)}
    return found


def tree(folder: Path, tensors: dict[str, Array], config: dict[str, Any]) -> Tree:
    write_checkpoint(folder, tensors, config)
    return tree_of(open_checkpoint(Directory(folder), "m"))


def test_layers_of_equal_build_are_one_group(tmp_path: Path) -> None:
    found = tree(tmp_path, hybrid(), CONFIG)
    assert found.architectures == ("M",)
    assert found.parameters == 36 + 4 + 5 * (4 * 16 + 3 * 32)
    (stack,) = found.stacks
    assert (stack.name, stack.layers, stack.counted_by) == ("model.layers", 4, ("num_hidden_layers: 4",))
    assert [(group.numbers, group.count) for group in stack.groups] == [("0-1,3-4", 4), ("2", 1)]
    assert stack.groups[0].note == "beyond the config's count"
    experts = [row for row in stack.groups[1].rows if "experts" in row.name]
    assert experts == [Row("mlp.experts.0-2.up.weight", (8, 4), "F32", 3)]


def test_what_stands_around_the_layers(tmp_path: Path) -> None:
    found = tree(tmp_path, hybrid(), CONFIG)
    (embedding,) = found.before
    assert embedding.notes == ("vocabulary on axis 0", "tied: the head, if there is one, is this tensor")
    assert found.after == (Row("model.norm.weight", (4,), "F32", 1),)


def test_a_head_that_is_not_stored(tmp_path: Path) -> None:
    config = {**CONFIG, "architectures": ["MForCausalLM"], "tie_word_embeddings": False}
    (embedding,) = tree(tmp_path, hybrid(), config).before
    assert embedding.notes[1] == "stands for lm_head.weight, which is not stored"


@pytest.mark.parametrize(("numbers", "text"), [([3], "3"), ([2, 0, 1], "0-2"), ([0, 2, 3, 4, 7], "0,2-4,7"), ([], "")])
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
