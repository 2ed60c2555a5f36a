"""What `cuvee plan` and `cuvee merge` say of inputs that are stored otherwise than the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from support.tiny_models import Family, make_llama


@pytest.fixture
def family(tmp_path: Path) -> Family:
    family = make_llama(tmp_path / "family")
    state = {name.replace("model.", "transformer."): tensor for name, tensor in family.state("b").items()}
    save_file(state, family.path("b") / "model.safetensors", {"format": "pt"})
    (tmp_path / "recipe.yml").write_text(
        f"merge_method: linear\nparameters: {{weight: 1}}\n"
        f"models:\n  - model: {family.path('a')}\n  - model: {family.path('b')}\n"
    )
    return family


def test_the_plan_has_a_note(cuvee: Any, family: Family) -> None:
    recipe = str(family.folder.parent / "recipe.yml")
    shown = " ".join(cuvee("plan", recipe).out.split())
    assert "29 tensors matched to the names of" in shown
    assert "(transformer.* as model.*)" in shown
    (note,) = json.loads(cuvee("plan", recipe, "--json").out)["notes"]
    assert (
        note == f"{family.path('b')}: 29 tensors matched to the names of {family.path('a')} (transformer.* as model.*)"
    )


def test_the_merge_needs_no_word(cuvee: Any, family: Family) -> None:
    said = cuvee("merge", str(family.folder.parent / "recipe.yml"), str(family.folder / "out"))
    assert said.code == 0
    assert "30 tensors merged, 0 copied" in said.out


def test_a_fused_tensor_of_unknown_order_stops_it(cuvee: Any, family: Family) -> None:
    state = {name.replace("q_proj", "query_key_value"): tensor for name, tensor in family.state("b").items()}
    save_file(state, family.path("b") / "model.safetensors", {"format": "pt"})
    said = cuvee("merge", str(family.folder.parent / "recipe.yml"), str(family.folder / "out"))
    assert said.code == 2
    assert "the order inside the fused tensor is not known" in said.err
    assert not (family.folder / "out").exists()
