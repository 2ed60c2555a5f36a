"""`cuvee layout`, and how `plan` and `merge` tell what was decided for tensors that only some models have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from cuvee.cli import main
from support.tiny_models import Family, make_llama, recipe

LINEAR = 'merge_method: linear\nmodels: [{model: "@a"}, {model: "@b"}]\nparameters: {weight: 0.5}\n'


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


@pytest.fixture
def uneven(tmp_path: Path) -> Family:
    """Two Llamas, the second without a tensor."""
    family = make_llama(tmp_path / "family", names=("a", "b"))
    state = family.state("b")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, family.path("b") / "model.safetensors")
    return family


def test_layout_is_a_tree(llama: Family, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("layout", str(llama.path("a"))) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("LlamaForCausalLM, ")
    assert lines[0].endswith(" k parameters, float32")
    assert "├── model.embed_tokens.weight  [128, 16]  vocabulary on axis 0" in lines
    assert "├── model.layers  3 layers  num_hidden_layers: 3" in lines
    assert "│   └── layers 0-2" in lines
    assert "│       ├── self_attn.k_proj.weight  [8, 16]" in lines


def test_layout_for_programs(llama: Family, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("layout", str(llama.path("a")), "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["stacks"][0]["groups"][0]["numbers"] == "0-2"


def test_layout_of_nothing_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("layout", "./nowhere") == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_plan_and_report_name_the_rule(uneven: Family, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "recipe.yml").write_text(recipe(LINEAR + "missing: base\n", uneven))
    said = f"copied from {uneven.path('a')}: absent from {uneven.path('b')}"
    assert run("plan", "recipe.yml") == 0
    flat = " ".join(capsys.readouterr().out.split())
    assert said.split(":")[1] in flat.replace("\n", "")
    assert run("merge", "recipe.yml", "out") == 0
    assert f"model.layers.1.mlp.up_proj.weight: {said}" in capsys.readouterr().out
