"""Extractions and merges of adapters that were killed go on with the same command, and give the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import PlanError
from cuvee.lora.options import ExtractOptions
from cuvee.lora_api import extract_lora, merge_lora
from cuvee.options import MergeOptions
from cuvee.progress import Silent
from support.adapter_files import write_adapter
from support.tiny_models import make_llama

# Ends itself when the journal of that name is told of so many tensors and has made them durable.
VICTIM = """
import os, signal, sys
from cuvee.cli import main
from cuvee.engine.journal import Journal

wanted, count, *arguments = sys.argv[1:]
finished, seen = Journal.finished, []

def note(self, name):
    finished(self, name)
    if self._path.name == wanted:
        seen.append(name)
        if len(seen) == int(count):
            self.commit()
            os.kill(os.getpid(), signal.SIGKILL)

Journal.finished = note
sys.argv = ["cuvee", *arguments]
main()
"""
MODULES = {f"model.layers.{i}.{name}": 4 for i in range(4) for name in ("mlp.up_proj", "self_attn.q_proj")}


class Told(Silent):
    """Keeps the tensors that were done, and what was told of going on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.resumed: list[int] = []

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        self.names.append(name)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        if name == "resumed":
            self.resumed.append(facts["tensors"])


def kill(journal: str, count: int, *arguments: str) -> None:
    command = [sys.executable, "-c", VICTIM, journal, str(count), *arguments, "--threads", "1", "--quiet"]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("journal", "stages"), [("changes.journal", 0), ("spectra.journal", 1), ("journal", 2)], ids=["1st", "2nd", "3rd"]
)
def test_an_extraction_goes_on_in_whichever_stage_it_was_killed(journal: str, stages: int, here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a"))
    models = (str(family.path("a")), str(family.path("base")))
    options = ExtractOptions(energy=0.5)
    extract_lora(*models, here / "whole" / "out", options)
    told = Told()
    kill(journal, 5, "lora", "extract", "--model", models[0], "--base-model", models[1], "out", "--energy", "0.5")
    assert (here / "out.partial" / journal).exists()
    extract_lora(*models, here / "out", options, progress=told)
    assert told.resumed[-1] == 5
    assert len(told.resumed) == stages + 1
    assert contents(here / "out") == contents(here / "whole" / "out")
    assert not (here / "out.partial").exists()


def test_a_merge_of_adapters_goes_on(here: Path) -> None:
    sides = dict.fromkeys(MODULES, (24, 16))
    for number in range(2):
        write_adapter(here / f"a{number}", MODULES, sides, seed=number)
    text = "merge_method: dare_ties\nmodels:\n" + "".join(
        f"  - {{model: ./a{number}, parameters: {{weight: 0.7, density: 0.5}}}}\n" for number in range(2)
    )
    (here / "recipe.yml").write_text(text)
    merge_lora(here / "recipe.yml", here / "whole" / "out")
    told = Told()
    kill("journal", 3, "lora", "merge", "recipe.yml", "out")
    merge_lora(here / "recipe.yml", here / "out", progress=told)
    assert (told.resumed, len(told.names)) == ([3], len(MODULES) - 3)
    assert contents(here / "out") == contents(here / "whole" / "out")


@pytest.mark.parametrize(
    ("journal", "count", "resumed"), [("whole.journal", 4, [4]), ("journal", 26, [9, 26])], ids=["compare", "merge"]
)
def test_a_merge_of_whole_tensors_goes_on(journal: str, count: int, resumed: list[int], here: Path) -> None:
    family = make_llama(here / "family")
    for name in "ab":
        extract_lora(str(family.path(name)), str(family.path("base")), here / name, ExtractOptions(max_rank=4))
    (here / "recipe.yml").write_text(
        "merge_method: dare_ties\nparameters: {weight: 0.7, density: 0.5}\nmodels: [{model: ./a}, {model: ./b}]\n"
    )
    merge_lora(here / "recipe.yml", here / "whole" / "out")
    told = Told()
    kill(journal, count, "lora", "merge", "recipe.yml", "out")
    merge_lora(here / "recipe.yml", here / "out", progress=told)
    assert told.resumed == resumed
    assert contents(here / "out") == contents(here / "whole" / "out")


def test_a_base_that_changed_meanwhile_starts_the_merge_over(here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a", "b"))
    for name in "ab":
        extract_lora(str(family.path(name)), str(family.path("base")), here / name, ExtractOptions(max_rank=4))
    (here / "recipe.yml").write_text(
        "merge_method: concat\nparameters: {weight: 0.7}\nmodels: [{model: ./a}, {model: ./b}]\n"
    )
    kill("journal", 26, "lora", "merge", "recipe.yml", "out")
    (family.path("base") / "model.safetensors").write_bytes((family.path("a") / "model.safetensors").read_bytes())
    told = Told()
    merge_lora(here / "recipe.yml", here / "out", progress=told)
    assert told.resumed == [9]  # how the adapters differ is not the base's affair
    assert len(told.names) == 30


def test_other_options_start_the_adapter_over_and_fresh_starts_everything_over(here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a"))
    models = (str(family.path("a")), str(family.path("base")))
    command = ["lora", "extract", "--model", models[0], "--base-model", models[1], "out", "--rank", "2"]
    kill("journal", 5, *command)
    told = Told()
    extract_lora(*models, here / "out", ExtractOptions(max_rank=3), progress=told)
    assert len(told.resumed) == 1  # what changed is the same whatever the rank
    assert len(told.names) == 30
    kill("journal", 5, *command, "--overwrite")
    told = Told()
    extract_lora(*models, here / "out", ExtractOptions(max_rank=2), MergeOptions(fresh=True, overwrite=True), told)
    assert (told.resumed, len(told.names)) == ([], 60)


def test_what_no_run_can_go_on_from_leaves_nothing(here: Path) -> None:
    family = make_llama(here / "family", names=("base", "a"))
    same = make_llama(here / "same", names=("base", "a"))
    with pytest.raises(PlanError, match="do not differ"):
        extract_lora(str(same.path("base")), str(family.path("base")), here / "out")
    assert sorted(path.name for path in here.iterdir()) == ["family", "same"]
