"""Folders of sentence-transformers: the weights of further modules are merged, and all of the folders goes along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cuvee
from cuvee import MergeOptions
from cuvee.errors import CheckpointError, PlanError
from support.tiny_models import Family, State, load_checkpoint, make_llama, recipe

LINEAR = """
merge_method: linear
models: [{model: "@a"}, {model: "@b"}]
parameters: {weight: 0.5}
"""
PATHS = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
MODULES = [
    {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for number, (kind, path) in enumerate(PATHS.items())
]


def dense(seed: int) -> State:
    random = np.random.default_rng(seed)
    shapes = {"linear.weight": (8, 16), "linear.bias": (8,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def family(tmp_path: Path) -> Family:
    found = make_llama(tmp_path / "family", names=("a", "b"))
    for seed, name in enumerate("ab"):
        folder = found.path(name)
        (folder / "modules.json").write_text(json.dumps(MODULES))
        for module in ("1_Pooling", "2_Dense"):
            (folder / module).mkdir()
            (folder / module / "config.json").write_text(json.dumps({"of": module}))
        save_file(dense(seed), folder / "2_Dense" / "model.safetensors")
    return found


def assert_dense_is_the_mean(out: Path) -> None:
    first, second = dense(0), dense(1)
    got = load_file(out / "2_Dense" / "model.safetensors")
    assert got.keys() == first.keys()
    for name, value in got.items():
        np.testing.assert_allclose(value, (first[name].astype(np.float64) + second[name]) / 2, rtol=1e-6)


@pytest.mark.parametrize("size", ["5B", "9K"])
def test_modules_are_merged_into_their_folders(size: str, family: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cuvee.merge(recipe(LINEAR, family), out, MergeOptions(out_shard_size=size))
    assert_dense_is_the_mean(out)
    assert load_checkpoint(out).keys() == family.state("a").keys()
    index = out / "model.safetensors.index.json"
    assert index.exists() == (size == "9K")
    if index.exists():
        assert set(json.loads(index.read_text())["weight_map"]) == set(family.state("a"))
    for file in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json"):
        assert (out / file).read_bytes() == (family.path("a") / file).read_bytes()
    again = tmp_path / "again"
    cuvee.merge(f"merge_method: passthrough\nmodels: [{{model: {out}}}]\n", again)
    assert_dense_is_the_mean(again)


def test_modules_pickled(family: Family, tmp_path: Path) -> None:
    import torch

    folder = family.path("b") / "2_Dense"
    state = load_file(folder / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cuvee.merge(recipe(LINEAR, family), tmp_path / "out")
    assert_dense_is_the_mean(tmp_path / "out")


def test_a_module_that_one_model_lacks(family: Family, tmp_path: Path) -> None:
    shutil.rmtree(family.path("b") / "2_Dense")
    with pytest.raises(PlanError, match=r"2_Dense/linear"):
        cuvee.plan(recipe(LINEAR, family))
    cuvee.merge(recipe(LINEAR + "missing: base\n", family), tmp_path / "out")
    got = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert {name: value.tobytes() for name, value in got.items()} == {n: v.tobytes() for n, v in dense(0).items()}


def test_a_damaged_module_is_refused(family: Family) -> None:
    (family.path("b") / "2_Dense" / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="2_Dense"):
        cuvee.plan(recipe(LINEAR, family))


@pytest.mark.parametrize("folder", ["0_Transformer", "0_BERT"])
def test_the_folders_of_early_versions(folder: str, family: Family, tmp_path: Path) -> None:
    """The model lay in a folder of its own; the merged one lies at the top, where today's are."""
    cuvee.merge(recipe(LINEAR, family), tmp_path / "new")
    for name in "ab":
        root = family.path(name)
        (root / folder).mkdir()
        for file in [each for each in root.iterdir() if each.is_file() and each.name != "modules.json"]:
            file.rename(root / folder / file.name)
        (root / "config.json").write_text('{"__version__": "1.0.0"}')
        (root / "modules.json").write_text(json.dumps([{**MODULES[0], "path": folder}, *MODULES[1:]]))
    cuvee.merge(recipe(LINEAR, family), tmp_path / "old")
    written = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert written == {path.relative_to(tmp_path / "old") for path in (tmp_path / "old").rglob("*") if path.is_file()}
    for file in ("config.json", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "old" / file).read_bytes() == (tmp_path / "new" / file).read_bytes(), file
    assert json.loads((tmp_path / "old" / "modules.json").read_text()) == MODULES
    old, new = load_checkpoint(tmp_path / "old"), load_checkpoint(tmp_path / "new")
    assert {name: value.tobytes() for name, value in old.items()} == {n: v.tobytes() for n, v in new.items()}
    assert cuvee.check(tmp_path / "old").ok
    assert cuvee.check(family.path("a")).ok
