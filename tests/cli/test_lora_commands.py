"""`cuvee lora extract` and `merge` as people type them: what they say, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Command
from support.adapter_files import dense, write_adapter
from support.checkpoints import read_checkpoint, read_file
from support.tiny_models import Family


def test_extract_and_put_back(cuvee: Command, llama: Family, here: Path) -> None:
    said = cuvee("lora", "extract", "--model", llama.path("a"), "--base-model", llama.path("base"), "out", "--exact",
                 "--rank", 64)  # fmt: skip
    assert said.code == 0
    assert "21 matrices as factors, 9 tensors whole" in said.out
    assert "relative error" in said.out
    (here / "recipe.yml").write_text(f"merge_method: passthrough\nmodels: [{{model: {llama.path('base')}+out}}]\n")
    assert cuvee("merge", "recipe.yml", "again").code == 0
    again, wanted = read_checkpoint(here / "again"), llama.state("a")
    assert again.keys() == wanted.keys()
    for name, values in wanted.items():
        assert again[name] == pytest.approx(values, abs=1e-6 * float(np.abs(values).max())), name
    # Alone, it goes on the base that it names.
    (here / "alone.yml").write_text("merge_method: passthrough\nmodels: [{model: ./out}]\n")
    assert cuvee("merge", "alone.yml", "alone").code == 0
    same = read_checkpoint(here / "alone")
    assert all(np.array_equal(same[name], values) for name, values in again.items())
    facts = json.loads(cuvee("lora", "info", "out", "--json").out)
    assert str(llama.path("base")) in json.dumps(facts)


def test_mergekit_s_command_line(cuvee: Command, llama: Family, here: Path) -> None:
    said = cuvee(
        "lora", "extract", "--model", llama.path("a"), "--base-model", llama.path("base"), "--out-path", "out",
        "--max-rank", 4, "--no-distribute-scale", "--sv-epsilon", "0", "--embed-lora", "-e", "layers.0", "-e",
        "down_proj", "-i", "proj", "--save-module", "up_proj", "--skip-undecomposable", "--lazy-unpickle", "-v",
        "--quiet",
        program="mergekit-extract-lora",
    )  # fmt: skip
    assert (said.code, said.out) == (0, "")
    assert "--lazy-unpickle" in said.err
    names = set(read_file(here / "out" / "adapter_model.safetensors"))
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in names
    assert "base_model.model.lm_head.lora_A.weight" in names
    assert "base_model.model.model.layers.1.mlp.up_proj.weight" in names
    assert not any("layers.0" in name or "down_proj" in name or "norm" in name for name in names)
    config = json.loads((here / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 4, "LORA")


def test_output_and_refusals(cuvee: Command, llama: Family, here: Path) -> None:
    models = ("--model", llama.path("a"), "--base-model", llama.path("base"))
    assert cuvee("lora", "extract", *models).code == 2
    assert cuvee("lora", "extract", *models, "out", "--out-path", "other").code == 2
    same = cuvee("lora", "extract", "--model", llama.path("a"), "--base-model", llama.path("a"), "out")
    assert (same.code, "the same checkpoint" in same.err) == (2, True)
    assert "Traceback" not in same.err
    assert list(here.iterdir()) == []
    assert cuvee("lora", "extract", *models, "out", "--rank", 2).code == 0
    again = cuvee("lora", "extract", *models, "out")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert cuvee("lora", "extract", *models, "out", "--rank", 3, "--overwrite").code == 0
    assert json.loads((here / "out" / "adapter_config.json").read_text())["r"] == 3


def test_merge(cuvee: Command, here: Path) -> None:
    sides = {"layers.0.q_proj": (6, 5)}
    for seed, name in enumerate("ab"):
        write_adapter(here / name, {"layers.0.q_proj": 2}, sides, seed=seed, alpha=2.0)
    (here / "recipe.yml").write_text("merge_method: concat\nmodels: [{model: ./a}, {model: ./b}]\n")
    said = cuvee("lora", "merge", "recipe.yml", "out")
    assert said.code == 0
    assert "1 modules, rank 4 to 4" in said.out
    one, two = dense(here / "a"), dense(here / "b")
    assert dense(here / "out")["layers.0.q_proj"] == pytest.approx(one["layers.0.q_proj"] + two["layers.0.q_proj"])
    card = (here / "out" / "README.md").read_text()
    assert "merge_method: concat" in card
    assert str(here) not in card
    wrong = cuvee("lora", "merge", "missing.yml", "other")
    assert (wrong.code, "cannot read the recipe" in wrong.err) == (2, True)
