"""The shipped family is what the demo says it is."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from cuvee.demo import family, llama
from cuvee.demo.skills import SKILLS, accuracy

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_family_is_the_base_and_one_expert_for_each_skill() -> None:
    assert list(family()) == ["base", *SKILLS]
    assert all({path.name for path in folder.iterdir()} == FILES for folder in family().values())


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for folder in family().values() for path in folder.iterdir()) < 5_000_000


def test_all_hold_the_same_bfloat16_tensors_with_different_values() -> None:
    layouts, values = [], []
    for folder in family().values():
        with safe_open(folder / "model.safetensors", "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            layouts.append({name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()})
            values.append(file.get_tensor("model.layers.0.mlp.up_proj.weight"))
    assert all(layout == layouts[0] for layout in layouts)
    assert {dtype for _, dtype in layouts[0].values()} == {"BF16"}
    assert all(not one.equal(other) for n, one in enumerate(values) for other in values[:n])


def test_their_tokenizers_and_configs_are_the_same() -> None:
    for name in FILES - {"model.safetensors"}:
        assert len({(folder / name).read_text() for folder in family().values()}) == 1


@pytest.mark.parametrize("skill", SKILLS)
def test_an_expert_has_its_own_skill_and_no_other_model_has(skill: str) -> None:
    share = {name: accuracy(llama.load(folder), skill) for name, folder in family().items()}
    assert share.pop(skill) >= 0.85
    assert max(share.values()) <= 0.2
