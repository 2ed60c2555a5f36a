"""`cuvee check` as scripts use it, and what transformers has to say through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.tiny_models import Family, make_architecture, make_llama


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return make_llama(tmp_path / "family")


def findings(cuvee: Any, *arguments: Any) -> dict[str, tuple[str, str]]:
    said = cuvee("check", *map(str, arguments), "--json")
    found = json.loads(said.out)
    assert said.code == (2 if any(each["state"] == "problem" for each in found) else 0)
    return {each["check"]: (each["state"], each["text"]) for each in found}


def test_a_sound_model(cuvee: Any, family: Family) -> None:
    said = cuvee("check", str(family.path("a")))
    assert said.code == 0
    assert "is sound" in said.out
    assert "LlamaForCausalLM loads it whole" in " ".join(said.out.split())


def test_missing_and_unexpected_tensors(cuvee: Any, family: Family) -> None:
    state = family.state("a")
    state["model.layers.0.self_attn.extra.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, family.path("a") / "model.safetensors", {"format": "pt"})
    found = findings(cuvee, family.path("a"))
    state_, text = found["transformers"]
    assert state_ == "problem"
    assert "1 missing (model.layers.1.mlp.up_proj.weight)" in text
    assert "1 unexpected (model.layers.0.self_attn.extra.weight)" in text
    assert found["layers"][0] in ("note", "ok")


def test_quick_reads_no_weights(cuvee: Any, family: Family) -> None:
    state = family.state("a")
    state["model.norm.weight"] = np.full_like(state["model.norm.weight"], np.nan)
    save_file(state, family.path("a") / "model.safetensors", {"format": "pt"})
    assert findings(cuvee, family.path("a"), "--quick").keys() == {"files", "layers", "ties", "vocabulary"}
    assert findings(cuvee, family.path("a"))["values"] == (
        "problem", f"1 tensors hold NaN or infinities: model.norm.weight ({len(state['model.norm.weight'])})"
    )  # fmt: skip


def test_shapes_that_differ_from_the_class(cuvee: Any, family: Family) -> None:
    config = family.config("a")
    (family.path("a") / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))
    assert findings(cuvee, family.path("a"))["transformers"][0] == "problem"


def test_a_class_that_is_not_there(cuvee: Any, family: Family) -> None:
    config = family.config("a")
    (family.path("a") / "config.json").write_text(json.dumps(config | {"architectures": ["VeltlinerForCausalLM"]}))
    state, text = findings(cuvee, family.path("a"))["transformers"]
    assert state == "problem"
    assert "has no class VeltlinerForCausalLM" in text
    (family.path("a") / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    assert findings(cuvee, family.path("a"))["transformers"][0] == "skipped"


def test_generation(cuvee: Any, family: Family) -> None:
    state, text = findings(cuvee, family.path("a"), "--generate", "hello")["generation"]
    assert state == "ok"
    assert text.startswith("'hello' goes on ")
    (family.path("a") / "tokenizer.json").unlink()
    (family.path("a") / "tokenizer_config.json").unlink(missing_ok=True)
    assert findings(cuvee, family.path("a"), "--quick", "--generate", "hello")["generation"][0] == "problem"


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "gpt-neox"])
def test_families(name: str, cuvee: Any, tmp_path: Path) -> None:
    family = make_architecture(name, tmp_path)
    found = findings(cuvee, family.path("base"))
    assert {state for state, _ in found.values()} == {"ok"}, found


def test_no_such_directory(cuvee: Any, tmp_path: Path) -> None:
    said = cuvee("check", str(tmp_path / "nowhere"))
    assert said.code == 2
    assert said.err.startswith("error: no checkpoint at ")


def test_a_merge_says_what_is_wrong_with_its_result(cuvee: Any, family: Family) -> None:
    for model in ("a", "b"):
        config = family.config(model)
        (family.path(model) / "config.json").write_text(json.dumps(config | {"eos_token_id": 4000}))
    recipe = family.folder / "recipe.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {family.path('a')}}}, {{model: {family.path('b')}}}]\n"
                      "parameters: {weight: 1}\n")  # fmt: skip
    said = cuvee("merge", str(recipe), str(family.folder / "out"))
    assert said.code == 0
    assert "warning: the merged checkpoint: eos_token_id is 4000, and the embedding has 128 rows" in said.err
    assert cuvee("check", str(family.folder / "out"), "--quick").code == 2
