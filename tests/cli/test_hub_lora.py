"""The commands about adapters with models and adapters of a Hub: revisions, what is downloaded, what outputs say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora, merge_lora
from cuvee.options import MergeOptions
from support.adapter_files import write_adapter
from support.checkpoints import read_file, write_checkpoint
from support.hub_server import HubServer, use_hub
from support.tiny_models import Family

MODULES = {f"model.layers.{i}.self_attn.q_proj": 3 for i in range(2)}
SIDES = dict.fromkeys(MODULES, (16, 16))
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def hub(llama: Family, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add("vineyard/base", llama.path("b"))
        server.add("vineyard/base", llama.path("base"), "v1")
        server.add("vineyard/tuned", llama.path("a"))
        for number, (name, revision) in enumerate([("one", "main"), ("one", "v2"), ("two", "main")]):
            folder = tmp_path / f"{name}-{revision}"
            write_adapter(folder, MODULES, SIDES, seed=number, base_model_name_or_path="vineyard/base", revision="v1")
            server.add(f"vineyard/{name}", folder, revision)
        yield server


def arrays(folder: Path) -> Mapping[str, bytes]:
    return {name: array.tobytes() for name, array in read_file(folder / WEIGHTS).items()}


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize(("base", "family", "revision"), [("vineyard/base@v1", "base", "v1"),
                                                           ("vineyard/base", "b", "main")])  # fmt: skip
def test_an_extraction_takes_the_revision_and_names_its_commit(
    base: str, family: str, revision: str, hub: HubServer, llama: Family, tmp_path: Path
) -> None:
    options = ExtractOptions(max_rank=4)
    extract_lora("vineyard/tuned", base, tmp_path / "hub", options)
    extract_lora(str(llama.path("a")), str(llama.path(family)), tmp_path / "disk", options)
    assert arrays(tmp_path / "hub") == arrays(tmp_path / "disk")
    commit = hub.commit("vineyard/base", revision)
    assert commit is not None
    assert config(tmp_path / "hub")["base_model_name_or_path"] == "vineyard/base"
    assert config(tmp_path / "hub")["revision"] == commit.sha
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "base_model:\n- vineyard/base\n" in card
    assert "What `vineyard/tuned` learned over `vineyard/base`" in card
    assert f'from_pretrained("vineyard/base", revision="{commit.sha}")' in card
    assert str(tmp_path) not in card


def test_two_revisions_of_one_repository_can_be_compared(hub: HubServer, llama: Family, tmp_path: Path) -> None:
    extract_lora("vineyard/base", "vineyard/base@v1", tmp_path / "hub", ExtractOptions(max_rank=4))
    extract_lora(str(llama.path("b")), str(llama.path("base")), tmp_path / "disk", ExtractOptions(max_rank=4))
    assert arrays(tmp_path / "hub") == arrays(tmp_path / "disk")


def test_an_extraction_with_the_command_of_mergekit(hub: HubServer, cuvee: Any, here: Path) -> None:
    arguments = ["--model", "vineyard/tuned", "--base-model", "vineyard/base@v1", "--max-rank", "2"]
    said = cuvee("lora", "extract", *arguments, "--out-path", "out", "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert config(here / "out")["r"] == 2


def test_a_merge_of_adapters_takes_their_revisions(hub: HubServer, tmp_path: Path) -> None:
    def recipe(*names: str) -> dict[str, Any]:
        models = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
        return {"merge_method": "concat", "models": models}

    merge_lora(recipe("vineyard/one@v2", "vineyard/two"), tmp_path / "hub")
    merge_lora(recipe(str(tmp_path / "one-v2"), str(tmp_path / "two-main")), tmp_path / "disk")
    assert arrays(tmp_path / "hub") == arrays(tmp_path / "disk")
    found = config(tmp_path / "hub")
    assert (found["base_model_name_or_path"], found["revision"]) == ("vineyard/base", "v1")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "- `vineyard/one`\n- `vineyard/two`" in card
    assert str(tmp_path) not in card


def test_the_base_is_read_only_where_whole_tensors_need_it(hub: HubServer, llama: Family, tmp_path: Path) -> None:
    state = llama.state("base")
    norm = "model.norm.weight"
    folder = tmp_path / "sharded"
    write_checkpoint(folder, [{k: v for k, v in state.items() if k != norm}, {norm: state[norm]}], llama.config())
    hub.add("vineyard/sharded", folder, "v1")
    norms = {name: llama.state(name)[norm] for name in "ab"}
    for name, values in norms.items():
        write_adapter(tmp_path / name, MODULES, SIDES, seed=1, base_model_name_or_path="vineyard/sharded",
                      revision="v1", whole={norm: values}, modules_to_save=["norm"])  # fmt: skip
        hub.add(f"vineyard/{name}", tmp_path / name)

    def recipe(*names: str) -> dict[str, Any]:
        models = [{"model": f"vineyard/{name}", "parameters": {"weight": 0.5}} for name in names]
        return {"merge_method": "concat", "models": models}

    merge_lora(recipe("a", "a"), tmp_path / "same")
    assert not any(hub.sent(f"model-0000{i}-of-00002.safetensors") for i in (1, 2))
    merge_lora(recipe("a", "b"), tmp_path / "out")
    own = state[norm].astype(float)
    wanted = own + sum(0.5 * (values - own) for values in norms.values())
    got = read_file(tmp_path / "out" / WEIGHTS)[f"base_model.model.{norm}"]
    assert got == pytest.approx(wanted, abs=1e-6)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert 0 < hub.sent(first.name) < 0.2 * first.stat().st_size  # its header
    assert hub.sent(second.name) >= second.stat().st_size
    assert "1 merged as changes from `vineyard/sharded`" in (tmp_path / "out" / "README.md").read_text()


def test_info_reads_no_weights(hub: HubServer, cuvee: Any) -> None:
    said = cuvee("lora", "info", "vineyard/one@v2", "--json")
    commit = hub.commit("vineyard/one", "v2")
    assert commit is not None
    facts = json.loads(said.out)
    assert (facts["identity"], facts["base_model"]) == (f"hf://vineyard/one@{commit.sha}", "vineyard/base@v1")
    assert hub.sent(WEIGHTS) < 2000


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "vineyard/nothing"],
        ["info", "vineyard/one@v9"],
        ["extract", "--model", "vineyard/nothing", "--base-model", "vineyard/base", "out"],
        ["extract", "--model", "vineyard/tuned", "--base-model", "vineyard/base@v9", "out"],
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(
    arguments: list[str], hub: HubServer, cuvee: Any, here: Path
) -> None:
    said = cuvee("lora", *arguments)
    assert said.code == 2
    assert said.err.startswith("error: ")
    wanted = next(word for word in arguments if "nothing" in word or "v9" in word)
    assert all(part in said.err for part in wanted.split("@"))
    assert not list(here.glob("out*"))


def test_a_download_that_broke_off_is_gone_on_with(hub: HubServer, tmp_path: Path) -> None:
    before = hub.sent("model.safetensors")
    extract_lora("vineyard/tuned", "vineyard/base@v1", tmp_path / "one", ExtractOptions(max_rank=2))
    first = hub.sent("model.safetensors") - before
    extract_lora("vineyard/tuned", "vineyard/base@v1", tmp_path / "two", ExtractOptions(max_rank=3), MergeOptions())
    assert hub.sent("model.safetensors") - before - first < 0.1 * first  # headers, if anything
