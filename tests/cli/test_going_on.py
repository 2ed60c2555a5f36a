"""What the command line says of merges that stop, go on and start over; and the log for programs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cuvee.engine import execute
from cuvee.errors import OutputError
from cuvee.tensors import disk
from support.tiny_models import make_llama, recipe

TEXT = 'merge_method: linear\nmodels: [{model: "@a"}, {model: "@b"}]\nparameters: {weight: 0.5}\n'


@pytest.fixture
def ready(here: Path) -> Path:
    family = make_llama(here.parent / "family", names=("a", "b"))
    (family.path("a") / "modeling_custom.py").unlink()  # which would be warned of
    (here / "recipe.yml").write_text(recipe(TEXT, family))
    return here


def break_off(patch: pytest.MonkeyPatch, error: BaseException, after: int = 12) -> None:
    """Lets merges fail after so many tensors."""
    run_op, calls = execute.run_op, iter(range(after))

    def run(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise error
        run_op(*arguments)

    patch.setattr(execute, "run_op", run)


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (OutputError("cannot write", fix="free some space"), 2, "error: cannot write\n  fix:      free some space\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (MemoryError(), 2, "error: out of memory\n  fix:      lower --memory, --threads or --processes\n"),
    ],
    ids=["disk", "interrupt", "memory"],
)
def test_a_merge_that_stops_says_what_is_kept_and_how_to_go_on(
    error: BaseException, code: int, first: str, cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, error)
        said = cuvee("merge", "recipe.yml", "out", "--threads", "1", "--fresh")
    assert said.code == code
    assert said.err.startswith(first)
    kept, command = said.err.removeprefix(first).splitlines()
    assert re.fullmatch(rf"  kept:     12 of 30 tensors \([\d.]+ kB\) in {ready}/out\.partial", kept)
    command = command.removeprefix("  continue: ")
    assert command == "cuvee merge recipe.yml out --threads 1"
    went_on = cuvee(*shlex.split(command)[1:])
    assert (went_on.code, went_on.err) == (0, "going on: 12 of 30 tensors are done already\n")
    assert "30 tensors merged, 0 copied (12 by an earlier run)" in went_on.out
    assert sorted(path.name for path in ready.iterdir()) == ["out", "recipe.yml"]


def test_mergekit_s_command_goes_on_by_its_own_name(cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch, OutputError("cannot write"))
    said = cuvee("merge", "recipe.yml", "out", program="mergekit-yaml")
    assert said.err.splitlines()[-1] == "  continue: mergekit-yaml recipe.yml out"


def test_starting_over_says_why(cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, OutputError("cannot write"))
        cuvee("merge", "recipe.yml", "out")
    (ready / "recipe.yml").write_text((ready / "recipe.yml").read_text().replace("0.5", "0.25"))
    said = cuvee("merge", "recipe.yml", "out")
    assert (said.code, said.err) == (0, "starting over: the recipe changed\n")


def test_a_log_tells_every_event(cuvee: Any, ready: Path) -> None:
    said = cuvee("merge", "recipe.yml", "out", "--log-json", "log.jsonl")
    assert said.code == 0, said.err
    events = [json.loads(line) for line in (ready / "log.jsonl").read_text().splitlines()]
    order = [event["event"] for event in events]
    assert order == ["planned", "begin", *["done"] * 30, "end", "finished"]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    planned, begun, *done, _, finished = events
    assert planned["tensors"] == 30
    assert begun["bytes"] == planned["bytes_written"] == (ready / "out" / "model.safetensors").stat().st_size
    assert sum(event["bytes"] for event in done) == planned["bytes_read"] // 2
    assert len({event["name"] for event in done}) == 30
    assert all(event["seconds"] > 0 and event["stage"] == "merge" for event in done)
    assert (finished["out"], set(finished["files"])) == ("out", {path.name for path in (ready / "out").iterdir()})


def test_a_log_tells_of_a_failure_and_of_going_on(cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, OutputError("cannot write"))
        cuvee("merge", "recipe.yml", "out", "--threads", "1", "--log-json", "log.jsonl")
    last = json.loads((ready / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["error"], last["message"]) == ("failed", "OutputError", "cannot write")
    cuvee("merge", "recipe.yml", "out", "--log-json", "log.jsonl")
    events = [json.loads(line) for line in (ready / "log.jsonl").read_text().splitlines()]
    (resumed,) = (event for event in events if event["event"] == "resumed")
    assert (resumed["tensors"], resumed["of"]) == (12, 30)
    assert sum(event["event"] == "done" for event in events) == 18


def test_a_log_that_cannot_be_written_is_refused(cuvee: Any, ready: Path) -> None:
    said = cuvee("merge", "recipe.yml", "out", "--log-json", "absent/log.jsonl")
    assert (said.code, said.err) == (2, "error: cannot write the log absent/log.jsonl: No such file or directory\n")
    assert [path.name for path in ready.iterdir()] == ["recipe.yml"]


def test_verbose_names_each_tensor(cuvee: Any, ready: Path) -> None:
    said = cuvee("merge", "recipe.yml", "out", "-v")
    assert len(said.err.splitlines()) == 30
    assert "model.layers.2.self_attn.o_proj.weight" in said.err.splitlines()


def test_quiet_says_nothing_of_going_on(cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OutputError("cannot write")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace_directory", fail)
        assert "kept:     30 of 30" in cuvee("merge", "recipe.yml", "out", "--quiet").err
    said = cuvee("merge", "recipe.yml", "out", "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_an_extraction_that_stops_goes_on_with_the_name_it_was_called_by(
    cuvee: Any, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = ready.parent / "family"
    arguments = ["lora", "extract", "--model", family / "a", "--base-model", family / "b", "out", "--threads", "1"]
    for program, start in (("mergekit-extract-lora", ""), ("cuvee", "lora extract ")):
        with monkeypatch.context() as patch:
            break_off(patch, KeyboardInterrupt(), after=40)
            said = cuvee(*arguments, "--fresh", program=program)
        kept, command = said.err.splitlines()[-2:]
        assert kept.startswith("  kept:     10 of 30 tensors")
        assert command.startswith(f"  continue: {program} {start}--model ")
        assert "--fresh" not in command
