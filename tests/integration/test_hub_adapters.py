"""Adapters on a Hub: revisions of both, headers first, then only what the plan needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import cuvee
from support.adapters import lora_state, write_adapter
from support.hub_server import HubServer, use_hub
from support.tiny_models import Family, load_checkpoint

HEAD = {"lm_head": (128, 16)}


@pytest.fixture
def hub(llama: Family, tmp_path: Path) -> Iterator[HubServer]:
    old = write_adapter(tmp_path / "old", lora_state(HEAD, seed=1), base_model_name_or_path="vineyard/base")
    new = write_adapter(tmp_path / "new", lora_state(HEAD, seed=2), base_model_name_or_path="vineyard/base")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add("vineyard/base", llama.path("a"))
        server.add("vineyard/base", llama.path("base"), "v1")
        server.add("vineyard/lora", old)
        server.add("vineyard/lora", new, "v2")
        yield server


def merged(model: str, out: Path) -> bytes:
    cuvee.merge({"merge_method": "passthrough", "models": [{"model": model}]}, out)
    return load_checkpoint(out)["lm_head.weight"].tobytes()


@pytest.mark.parametrize(
    ("reference", "base", "adapter"),
    [
        ("vineyard/base+vineyard/lora", "a", "old"),
        ("vineyard/base@v1+vineyard/lora", "base", "old"),
        ("vineyard/base+vineyard/lora@v2", "a", "new"),
        ("vineyard/lora@v2", "a", "new"),
    ],
)
def test_revisions_on_both(
    reference: str, base: str, adapter: str, hub: HubServer, llama: Family, tmp_path: Path
) -> None:
    assert merged(reference, tmp_path / "hub") == merged(f"{llama.path(base)}+{tmp_path / adapter}", tmp_path / "disk")


def test_planning_reads_headers_only(hub: HubServer, llama: Family) -> None:
    cuvee.plan({"merge_method": "passthrough", "models": [{"model": "vineyard/base+vineyard/lora"}]})
    assert hub.sent("model.safetensors") < 8000
    assert hub.sent("adapter_model.safetensors") < 800


def test_the_card_names_both_with_their_commits(hub: HubServer, tmp_path: Path) -> None:
    merged("vineyard/base@v1+vineyard/lora", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    base, lora = (hub.commit(f"vineyard/{name}", revision) for name, revision in (("base", "v1"), ("lora", "main")))
    assert base is not None
    assert lora is not None
    assert f"| [vineyard/base](https://huggingface.co/vineyard/base) | {base.sha} |" in card
    assert (
        f"| [vineyard/lora](https://huggingface.co/vineyard/lora) | {lora.sha} | adapter on the model above |" in card
    )
    assert str(tmp_path) not in card
