"""Adapters put on bases: where modules are found, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.adapters.adapter import open_adapter
from cuvee.errors import PlanError
from cuvee.tensors.checkpoint import Checkpoint, open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.sources import Source, Stored
from cuvee.tensors.updates import Added
from cuvee.views.adapter_names import BaseNames
from cuvee.views.adapters import with_adapter
from support.adapters import lora_state, write_adapter
from support.checkpoints import write_checkpoint
from support.tiny_models import State

TEXT = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qv"] + ["lm_head.weight"]


def renamed(before: str, after: str) -> list[str]:
    return [name.replace(before, after, 1) if name.startswith(before) else name for name in TEXT]


@pytest.mark.parametrize(
    "base",
    [
        TEXT,
        renamed("model.", ""),
        renamed("model.", "transformer."),
        renamed("model.", "model.language_model."),
        renamed("model.", "language_model.model."),
        [*renamed("model.", "language_model.model."), "vision_tower.layers.0.self_attn.q_proj.weight"],
    ],
    ids=lambda names: names[0],
)
def test_paths_are_found_however_they_begin(base: list[str]) -> None:
    paths = [name.removesuffix(".weight") for name in TEXT]
    names = BaseNames(base, paths)
    assert [names.find(path) for path in paths] == [name.removesuffix(".weight") for name in base[: len(paths)]]
    assert names.find("model.layers.9.self_attn.q_proj") is None


def test_a_longer_path_than_the_bases() -> None:
    base = ["layers.0.q.weight", "layers.1.q.weight"]
    names = BaseNames(base, ["encoder.model.layers.0.q", "encoder.model.layers.1.q"])
    assert names.find("encoder.model.layers.1.q") == "layers.1.q"


def test_layers_that_see_never_stand_for_layers_that_read() -> None:
    names = BaseNames(TEXT, ["model.vision_tower.encoder.layers.0.self_attn.q_proj"])
    assert names.find("model.vision_tower.encoder.layers.0.self_attn.q_proj") is None


@pytest.mark.parametrize("path", ["model.layers.9.self_attn.q_proj", "base.layers.9.self_attn.q_proj"])
def test_a_layer_that_the_base_lacks_is_no_other_layer(path: str) -> None:
    assert BaseNames(TEXT, [path]).find(path) is None


def base_of(tmp_path: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Checkpoint:
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return open_checkpoint(Directory(write_checkpoint(tmp_path / "base", tensors, config or None)), "the base")


def put_on(base: Checkpoint, tmp_path: Path, state: State, **config: Any) -> dict[str, Source]:
    folder = write_adapter(tmp_path / "adapter", state, **config)
    return dict(with_adapter(base, open_adapter(Directory(folder), "mine"), "both").tensors)


def test_only_what_is_adapted_changes(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8), "m.k.weight": (6, 8)})
    tensors = put_on(base, tmp_path, lora_state({"m.q": (6, 8)}))
    assert isinstance(tensors["m.q.weight"], Added)
    assert isinstance(tensors["m.k.weight"], Stored)
    assert list(tensors) == list(base.tensors)


def refusal(base: Checkpoint, tmp_path: Path, state: State, **config: Any) -> str:
    with pytest.raises(PlanError) as refused:
        put_on(base, tmp_path, state, **config)
    return str(refused.value)


def test_another_base_by_shape(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8)})
    said = refusal(base, tmp_path, lora_state({"m.q": (6, 10)}), base_model_name_or_path="org/other")
    assert "[6, 8]" in said
    assert "[6, 10]" in said
    assert "trained on org/other" in said


def test_another_base_by_name(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8)})
    said = refusal(base, tmp_path, lora_state({"m.q": (6, 8), "m.gate": (6, 8)}))
    assert "the base has no m.gate" in said
    assert "lora_A [4, 8]" in said


@pytest.mark.parametrize(
    ("state", "config", "words"),
    [
        ({"m.q.lora_magnitude_vector": np.ones(5, np.float32)}, {"use_dora": True}, "magnitude vector of shape [5]"),
        ({"m.q.lora_B.bias": np.ones(6, np.float32)}, {"lora_bias": True}, "a bias, [6], that the base does not have"),
        ({"m.k.weight": np.ones((7, 8), np.float32)}, {}, "a whole tensor of shape [7, 8]"),
        ({"elsewhere.weight": np.ones(3, np.float32)}, {}, "the base has no elsewhere.weight"),
    ],
)
def test_parts_that_do_not_fit(state: State, config: dict[str, Any], words: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8), "m.k.weight": (6, 8)})
    assert words in refusal(base, tmp_path, lora_state({"m.q": (6, 8)}) | state, **config)


def test_a_new_head_that_was_asked_for(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8)})
    state = lora_state({"m.q": (6, 8)}) | {"scores.weight": np.ones((2, 8), np.float32)}
    assert put_on(base, tmp_path, state, modules_to_save=["scores"])["scores.weight"].shape == (2, 8)


def test_a_module_of_the_bases_gets_no_new_tensors(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8), "m.experts.0.w2.weight": (4, 8)})
    state = lora_state({"m.q": (6, 8)}) | {"m.experts.down_proj": np.ones((2, 4, 8), np.float32)}
    assert "the base has no m.experts.down_proj" in refusal(base, tmp_path, state, modules_to_save=["experts"])


@pytest.mark.parametrize(
    ("kind", "state", "words"),
    [
        ("IA3", {"m.q.ia3_l": np.ones((5, 1), np.float32)}, "5 factors"),
        ("IA3", {"m.q.ia3_l": np.ones((1, 6, 1, 1), np.float32)}, "IA3 factors of shape"),
        ("LOKR", {"m.q.lokr_w1": np.ones((2, 2), np.float32), "m.q.lokr_w2": np.ones((2, 4), np.float32)}, "[4, 8]"),
        ("LOHA", {f"m.q.hada_w{i}_{p}": np.ones((5, 5), np.float32) for i in "12" for p in "ab"}, "hada_w1_a [5, 5]"),
        ("VERA", {"m.q.vera_lambda_b": np.ones(6, np.float32), "m.q.vera_lambda_d": np.ones(4, np.float32)},
         "without its projections"),
    ],
)  # fmt: skip
def test_other_methods_that_do_not_fit(kind: str, state: State, words: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.q.weight": (6, 8)})
    assert words in refusal(base, tmp_path, state, peft_type=kind)


def test_experts_of_another_base(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.experts.gate_up_proj": (3, 10, 8), "m.experts.down_proj": (3, 8, 5)})
    state = {
        "m.experts.lora_A.weight": np.ones((12, 7), np.float32),
        "m.experts.lora_B.weight": np.ones((10, 12), np.float32),
    }
    said = refusal(base, tmp_path, state, target_parameters=["experts.gate_up_proj"])
    assert "gate_up_proj [3, 10, 8]" in said
    assert "lora_A [12, 7]" in said


def test_the_rank_of_experts(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"m.experts.gate_up_proj": (3, 10, 8)})
    state = {
        "m.experts.lora_A.weight": np.ones((12, 8), np.float32),
        "m.experts.lora_B.weight": np.ones((10, 12), np.float32),
    }
    said = refusal(base, tmp_path, state, target_parameters=["experts.gate_up_proj"], r=5)
    assert "rank 5 for each of 3 experts" in said
