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


def test_layers_that_share_their_tensors_are_no_problem(cuvee: Any, tmp_path: Path) -> None:
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=32,
        embedding_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    transformers.AlbertForMaskedLM(config).save_pretrained(tmp_path / "albert")
    for how in ([], ["--quick"]):
        state, text = findings(cuvee, tmp_path / "albert", *how)["layers"]
        assert (state, text.split("; ")[1]) == ("note", "num_hidden_groups says that layers share their tensors")
    config = json.loads((tmp_path / "albert" / "config.json").read_text())
    del config["num_hidden_groups"]  # as it might be in a family that is not known here
    (tmp_path / "albert" / "config.json").write_text(json.dumps(config))
    assert findings(cuvee, tmp_path / "albert", "--quick")["layers"][0] == "problem"
    state, text = findings(cuvee, tmp_path / "albert")["layers"]
    assert state == "note"
    assert text.endswith("the model's class does not miss them")


@pytest.fixture
def recipe(family: Family) -> Path:
    recipe = family.folder / "recipe.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {family.path('a')}}}, {{model: {family.path('b')}}}]\n"
                      "parameters: {weight: 1}\n")  # fmt: skip
    return recipe


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (99, "model.layers: num_hidden_layers is 99, and layers 3, 4, 5, 6, 7 and 91 more are not stored"),
        ("three", "num_hidden_layers is 'three', which is no number of layers"),
    ],
)
def test_a_merge_says_what_was_wrong_with_its_base_already(
    layers: Any, told: str, cuvee: Any, family: Family, recipe: Path
) -> None:
    (family.path("a") / "config.json").write_text(json.dumps(family.config("a") | {"num_hidden_layers": layers}))
    said = cuvee("merge", str(recipe), str(family.folder / "out"))
    assert said.code == 0
    assert f"warning: the base already has: {told}\n" in said.err
    assert "the merged checkpoint" not in said.err


def test_a_merge_says_what_is_wrong_with_its_result_apart_from_its_base(
    cuvee: Any, family: Family, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee import api

    config = family.config("a")
    (family.path("a") / "config.json").write_text(json.dumps(config | {"eos_token_id": 4000}))
    said = cuvee("merge", str(recipe), str(family.folder / "first"))
    assert said.code == 0
    assert "the merged checkpoint" not in said.err
    assert "warning: the base already has: eos_token_id is 4000, and the embedding has " in said.err
    complete = api.complete

    def damaged(opened: Any, partial: Path, *rest: Any) -> Any:
        done = complete(opened, partial, *rest)
        written = json.loads((partial / "config.json").read_text())
        (partial / "config.json").write_text(json.dumps(written | {"num_hidden_layers": 5}))
        return done

    monkeypatch.setattr(api, "complete", damaged)
    said = cuvee("merge", str(recipe), str(family.folder / "second"))
    assert said.code == 0
    told = [line for line in said.err.splitlines() if "the merged checkpoint" in line]
    assert told == [
        "warning: the merged checkpoint: model.layers: num_hidden_layers is 5, and layers 3, 4 are not stored"
    ]


def test_a_merge_that_cannot_be_read_back_is_no_output(
    cuvee: Any, family: Family, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee import api

    complete = api.complete

    def damaged(opened: Any, partial: Path, *rest: Any) -> Any:
        done = complete(opened, partial, *rest)
        (partial / "model.safetensors").write_bytes((partial / "model.safetensors").read_bytes()[:-1])
        return done

    monkeypatch.setattr(api, "complete", damaged)
    said = cuvee("merge", str(recipe), str(family.folder / "out"))
    assert said.code == 2
    assert "the merged weights cannot be read back" in said.err
    assert "--fresh" in said.err
    assert not (family.folder / "out").exists()
