"""Which weight every A and B of an adapter is for, told by PEFT's names and the order in which it wraps parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.adapters.adapter import Adapter, open_adapter
from cuvee.errors import PlanError
from cuvee.lora.updates import holder_of, in_order, updates_of
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef
from support.checkpoints import write_tensors

BLOCK = "model.layers.0.mlp.experts"


def adapter(folder: Path, modules: dict[str, tuple[int, int, int]], **config: Any) -> Adapter:
    """An adapter with these modules: path -> out, in, rows of A."""
    tensors = {}
    for path, (out, inside, rows) in modules.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = np.ones((rows, inside), np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = np.ones((out, rows), np.float32)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}))
    return open_adapter(open_location(ModelRef(str(folder))), "it")


def test_modules_are_called_by_their_path(tmp_path: Path) -> None:
    (update,) = updates_of(adapter(tmp_path, {"layers.0.q_proj": (5, 4, 2)})).values()
    assert (update.name, update.weight, update.parameter) == ("layers.0.q_proj", "layers.0.q_proj.weight", False)
    assert (update.rank, update.experts, update.sides, update.scaling) == (2, 1, (5, 4), 3.0)


def test_of_two_parameters_the_first_is_wrapped_first(tmp_path: Path) -> None:
    wrapped = {BLOCK: (4, 3, 8), f"{BLOCK}.base_layer": (6, 4, 4), "model.layers.0.q_proj": (5, 4, 2)}
    found = updates_of(adapter(tmp_path, wrapped, target_modules=["q_proj"], rank_pattern={"gate_up_proj": 1},
                               target_parameters=["down_proj", "experts.gate_up_proj"]))  # fmt: skip
    assert {name: (u.sides, u.rank, u.scaling) for name, u in found.items()} == {
        f"{BLOCK}.gate_up_proj": ((4, 6, 4), 1, 6.0),
        f"{BLOCK}.down_proj": ((4, 4, 3), 2, 3.0),
        "model.layers.0.q_proj": ((5, 4), 2, 3.0),
    }
    leaves = in_order(["down_proj", "gate_up_proj"])
    assert leaves == ["gate_up_proj", "down_proj"]
    holders = [holder_of(update, leaves) for update in found.values() if update.parameter]
    assert holders == [f"{BLOCK}.base_layer", BLOCK]


@pytest.mark.parametrize("targets", ["q_proj", r".*\.q_proj", "["])
def test_target_modules_may_be_a_pattern(tmp_path: Path, targets: str) -> None:
    found = updates_of(adapter(tmp_path, {"layers.0.q_proj": (5, 4, 2)}, target_modules=targets,
                               target_parameters=["q_proj.weight"]))  # fmt: skip
    name = "layers.0.q_proj" if targets.startswith(".") else "layers.0.q_proj.weight"
    assert list(found) == [name]
    assert found[name].weight == "layers.0.q_proj.weight"


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="which parameters of"):
        updates_of(adapter(tmp_path / "1", {BLOCK: (4, 3, 8)}, target_parameters=["gate_up_proj", "down_proj"]))
    two = {BLOCK: (4, 3, 8), f"{BLOCK}.base_layer": (6, 4, 8)}
    with pytest.raises(PlanError, match="which parameters of"):
        updates_of(adapter(tmp_path / "2", two, target_parameters=["experts.w1", "experts.w2"]))
    with pytest.raises(PlanError, match="is not what its config says"):
        updates_of(adapter(tmp_path / "3", {BLOCK: (4, 3, 7)}, target_parameters=["down_proj"]))
    assert in_order(["", "weight"]) is None
