"""Merges of models on a Hub: headers first, then only what the plan needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import cuvee
from cuvee.errors import PlanError, SourceError
from support.hub_server import HubServer, use_hub
from support.tiny_models import Family, State, load_checkpoint, make_llama, recipe, save_llama

TEXT = """
merge_method: linear
models:
  - {model: vineyard/a, parameters: {weight: 0.5}}
  - {model: vineyard/b, parameters: {weight: 0.25}}
"""
STACK = """
merge_method: passthrough
slices:
  - sources: [{model: vineyard/a, layer_range: [0, 1]}]
  - sources: [{model: vineyard/b, layer_range: [0, 1]}]
"""


def shard_by_layer(family: Family, name: str) -> None:
    """Rewrites a model's weights as one file a layer, and one for what lies before and after."""
    state = family.state(name)
    (family.path(name) / "model.safetensors").unlink()
    files: dict[str, State] = {}
    for key, tensor in state.items():
        number = int(key.split(".")[2]) + 2 if "layers." in key else 1 if "embed" in key else 5
        files.setdefault(f"model-{number:05d}-of-00005.safetensors", {})[key] = tensor
    for file, tensors in files.items():
        save_file(tensors, family.path(name) / file, {"format": "pt"})
    weight_map = {key: file for file, tensors in files.items() for key in tensors}
    (family.path(name) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    made = make_llama(tmp_path_factory.mktemp("hub"), hidden=64, names=("a", "b", "c"))
    shard_by_layer(made, "a")
    return made


@pytest.fixture
def server(family: Family) -> Iterator[HubServer]:
    with HubServer() as running:
        for name in ("a", "b"):
            running.add(f"vineyard/{name}", family.path(name))
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Iterator[HubServer]:
    with use_hub(server, tmp_path / "home"):
        yield server


def weights_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def local(text: str, family: Family) -> str:
    return recipe(text.replace("vineyard/", "@"), family)


def test_merge_equals_the_same_merge_of_directories(hub: HubServer, family: Family, tmp_path: Path) -> None:
    cuvee.merge(TEXT, tmp_path / "hub")
    cuvee.merge(local(TEXT, family), tmp_path / "local")
    from_hub, from_disk = load_checkpoint(tmp_path / "hub"), load_checkpoint(tmp_path / "local")
    assert {name for name in from_disk if from_disk[name].tobytes() != from_hub[name].tobytes()} == set()
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {
        file.name for file in (tmp_path / "local").iterdir()
    }


def test_planning_reads_headers_only(hub: HubServer, family: Family) -> None:
    planned = cuvee.plan(TEXT)
    assert len(planned.ops) == len(family.state("a"))
    read = sum(served.sent_bytes for served in hub.log if served.file and served.file.endswith(".safetensors"))
    assert 0 < read < 0.2 * (weights_of(family.path("a")) + weights_of(family.path("b")))
    assert {served.status for served in hub.log if served.file and served.file.endswith(".safetensors")} <= {206, 200}
    asked = [
        served for served in hub.log if served.file and served.file.endswith(".safetensors") and served.method == "GET"
    ]
    assert all(served.span for served in asked)
    assert {model.identity for model in planned.models} == {
        f"hf://vineyard/{name}@{commit.sha}" for name in "ab" if (commit := hub.commit(f"vineyard/{name}", "main"))
    }


@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_copy_of_a_tied_embedding_is_left_out(
    equal: bool, server: HubServer, family: Family, tmp_path: Path
) -> None:
    """As it is of a directory: a few places are compared over the network, and only if they agree the whole."""
    state = family.state("b")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + (0 if equal else 1)
    save_llama(tmp_path / "twice", state, config={"tie_word_embeddings": True, "num_hidden_layers": 3})
    server.add("vineyard/twice", tmp_path / "twice")
    with use_hub(server, tmp_path / "home"):
        planned = cuvee.plan("merge_method: passthrough\nmodels: [{model: vineyard/twice}]\n")
    assert ("lm_head.weight" in {op.name for op in planned.ops}) != equal
    assert bool(list((tmp_path / "home").rglob("model.safetensors"))) == equal


def test_only_files_that_the_plan_needs_are_downloaded(hub: HubServer, family: Family, tmp_path: Path) -> None:
    cuvee.merge(STACK, tmp_path / "out")
    downloaded = {served.file for served in hub.log if served.method == "GET" and served.status == 200 and served.file}
    whole = {file for file in downloaded if file.endswith(".safetensors")}
    # The embedding and layer 0 of a, whose last layers and head are not used; b is a single file.
    assert whole == {"model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors", "model.safetensors"}
    cuvee.merge(local(STACK, family), tmp_path / "local")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0
    from_hub, from_disk = load_checkpoint(tmp_path / "out"), load_checkpoint(tmp_path / "local")
    assert {name for name in from_disk if from_disk[name].tobytes() != from_hub[name].tobytes()} == set()


def test_what_cannot_be_merged_is_refused_before_any_download(hub: HubServer, tmp_path: Path) -> None:
    text = STACK.replace("[0, 1]", "[0, 9]")
    with pytest.raises(PlanError, match=r"\[0, 9\]"):
        cuvee.merge(text, tmp_path / "out")
    assert hub.sent("model.safetensors") < 100_000
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_revisions_are_told_apart(hub: HubServer, family: Family, tmp_path: Path) -> None:
    old = hub.add("vineyard/a", family.path("c"), revision="v1")
    cuvee.merge("merge_method: passthrough\nmodels: [{model: vineyard/a@v1}]\n", tmp_path / "out")
    expected = family.state("c")
    got = load_checkpoint(tmp_path / "out")
    assert {name for name in expected if got[name].tobytes() != expected[name].tobytes()} == set()
    assert old in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SourceError, match="v2"):
        cuvee.plan("merge_method: passthrough\nmodels: [{model: vineyard/a@v2}]\n")


def test_download_that_breaks_off_leaves_no_output(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee.tensors import hub_refusals

    monkeypatch.setattr(hub_refusals, "_WAITS_SECONDS", (0.0, 0.0, 0.0))
    cuvee.plan(TEXT)
    hub.faults.drop_after = 20_000
    with pytest.raises(SourceError, match="vineyard/"):
        cuvee.merge(TEXT, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_command_line_with_the_environment_of_a_hub(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(TEXT)
    command = [sys.executable, "-m", "cuvee", "merge", "recipe.yml", "out"]
    environment = server.environment(tmp_path / "home", PATH=os.environ["PATH"])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    offline = subprocess.run(
        [*command[:-1], "again"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
        check=False,
    )
    assert offline.returncode == 0, offline.stderr
    first, second = (load_checkpoint(tmp_path / name) for name in ("out", "again"))
    assert {name for name in first if first[name].tobytes() != second[name].tobytes()} == set()
