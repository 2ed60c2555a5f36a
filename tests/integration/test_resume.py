"""A merge that was stopped goes on with the same command; another one, or `--fresh`, starts over; two do not meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee import MergeOptions
from cuvee.errors import OutputError, PlanError
from cuvee.progress import Silent
from cuvee.tensors import disk, locks
from support.checkpoints import read_checkpoint
from support.tiny_models import Family, make_llama, recipe

TEXT = """
merge_method: dare_ties
base_model: "@base"
models:
  - {model: "@a", parameters: {weight: 0.6, density: 0.5}}
  - {model: "@b", parameters: {weight: 0.3, density: 0.4}}
"""


class Events(Silent):
    """Keeps the events that are told in words, and the names of finished tensors."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.told: dict[str, Mapping[str, Any]] = {}
        self.names: list[str] = []
        self.bytes = 0
        self._stop_after = stop_after

    def advance(self, count: int) -> None:
        self.bytes += count

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        self.names.append(name)
        if len(self.names) == self._stop_after:
            raise KeyboardInterrupt

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        self.told[name] = facts


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return make_llama(tmp_path / "family", names=("base", "a", "b"))


def stop(text: str, out: Path, after: int = 10, options: MergeOptions = MergeOptions()) -> Events:  # noqa: B008
    events = Events(stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        cuvee.merge(text, out, options, events)
    return events


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


@pytest.mark.parametrize("first", [1, 2], ids=["1 process", "2 processes"])
@pytest.mark.parametrize("then", [1, 2], ids=["then 1", "then 2"])
def test_work_is_done_once_and_the_result_is_the_same(first: int, then: int, family: Family, here: Path) -> None:
    text = recipe(TEXT, family)
    cuvee.merge(text, here / "whole", MergeOptions(out_shard_size="20k"))
    stopped = stop(text, here / "out", options=MergeOptions(processes=first, threads=first, out_shard_size="20k"))
    events = Events()
    options = MergeOptions(processes=then, threads=then, out_shard_size="20k", memory="512MiB")
    report = cuvee.merge(text, here / "out", options, events)
    assert report.resumed == events.told["resumed"]["tensors"] >= 10
    left = [tensor.nbytes for name, tensor in family.state("a").items() if name in events.names]
    assert report.bytes_read == 3 * sum(left)
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in (here / "out").glob("*.safetensors"))
    assert report.bytes_written == sum(left) + headers
    done = set(stopped.names[: report.resumed])
    assert len(events.names) == 30 - report.resumed
    assert not done & set(events.names)
    assert events.bytes == sum(array.nbytes for array in read_checkpoint(here / "out").values())
    assert weights(here / "out") == weights(here / "whole")


def test_a_changed_recipe_starts_over(family: Family, here: Path) -> None:
    stop(recipe(TEXT, family), here / "out")
    events = Events()
    report = cuvee.merge(recipe(TEXT.replace("0.6", "0.7"), family), here / "out", progress=events)
    assert (report.resumed, events.told["restarted"]) == (0, {"reason": "the recipe changed"})


@pytest.mark.parametrize("change", ["values", "time", "tensors"])
def test_a_changed_input_starts_over(change: str, family: Family, here: Path) -> None:
    text, file = recipe(TEXT, family), family.path("a") / "model.safetensors"
    stop(text, here / "out")
    if change == "tensors":
        other = make_llama(here / "other", names=("base", "a"), vocabulary=130)
        for model in ("base", "a", "b"):
            source = other.path("base" if model == "base" else "a") / "model.safetensors"
            (family.path(model) / "model.safetensors").write_bytes(source.read_bytes())
    elif change == "values":
        data = bytearray(file.read_bytes())
        data[-4:] = b"\0\0\0\0"
        file.write_bytes(data)
    else:
        os.utime(file, ns=(0, 0))
    events = Events()
    report = cuvee.merge(text, here / "out", progress=events)
    assert report.resumed == 0
    assert events.told["restarted"]["reason"].endswith("changed")
    cuvee.merge(text, here / "whole")
    assert weights(here / "out") == weights(here / "whole")


def test_another_version_or_option_starts_over(family: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe(TEXT, family)
    stop(text, here / "out")
    events = stop(text, here / "out", options=MergeOptions(random_seed=5))
    assert events.told["restarted"] == {"reason": "an option that changes the output was changed"}
    monkeypatch.setattr(cuvee, "__version__", "77")
    events = stop(text, here / "out", options=MergeOptions(random_seed=5))
    assert str(events.told["restarted"]["reason"]).startswith("Cuvee's version is 77 now and was ")
    events = stop(text, here / "out", options=MergeOptions(random_seed=5, fresh=True))
    assert events.told["restarted"] == {"reason": "--fresh was given"}


def test_an_input_that_changes_under_the_merge_is_not_merged(family: Family, here: Path) -> None:
    class Vandal(Events):
        def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
            super().finished(name)
            if len(self.names) == 5:
                with (family.path("a") / "model.safetensors").open("r+b") as file:
                    file.seek(-4, os.SEEK_END)
                    file.write(b"\1\2\3\4")

    with pytest.raises(cuvee.CuveeError, match="was changed while it was being merged"):
        cuvee.merge(recipe(TEXT, family), here / "out", progress=Vandal())
    assert list(here.iterdir()) == []  # what was done is half of one merge and half of another


def test_pickles_written_at_the_end_do_not_cost_the_work(
    family: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are rewritten one by one; a run killed in between has lost the first ones."""
    text = recipe(TEXT, family)
    options = MergeOptions(safe_serialization=False, out_shard_size="20k")
    cuvee.merge(text, here / "whole", options)
    from cuvee.publish import pytorch

    save, saved = pytorch._save, []

    def killed(*arguments: Any) -> None:
        saved.append(arguments)
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pytorch, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            cuvee.merge(text, here / "out", options)
    report = cuvee.merge(text, here / "out", options)
    assert 0 < report.resumed < 30
    assert sorted(path.name for path in (here / "out").iterdir()) == sorted(
        path.name for path in (here / "whole").iterdir()
    )
    import torch

    for path in sorted((here / "whole").glob("*.bin")):
        right, found = torch.load(path), torch.load(here / "out" / path.name)
        assert {name for name in right if not torch.equal(right[name], found[name])} == set()


def test_space_that_an_earlier_run_took_counts_as_free(
    family: Family, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe(TEXT, family)
    stop(text, here / "out")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10_000)
    with pytest.raises(PlanError, match="not enough disk space"):
        cuvee.merge(text, here / "elsewhere")
    assert cuvee.merge(text, here / "out").resumed >= 10


def test_what_waits_is_untouched_by_a_run_that_is_refused(family: Family, here: Path) -> None:
    text = recipe(TEXT, family)
    stop(text, here / "out")
    with pytest.raises(cuvee.CuveeError):
        cuvee.merge(text.replace("dare_ties", "dare_tie"), here / "out")
    assert cuvee.merge(text, here / "out").resumed >= 10


def test_a_second_merge_into_one_output_is_refused(family: Family, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, refused = recipe(TEXT, family), []
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.05)

    class Rival(Events):
        def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
            if not refused:
                refused.append(name)
                with pytest.raises(OutputError, match=f"another merge .process {os.getpid()}. is writing"):
                    cuvee.merge(text, here / "out")

    cuvee.merge(text, here / "out", MergeOptions(threads=1), Rival())
    cuvee.merge(text, here / "whole")
    assert refused
    assert weights(here / "out") == weights(here / "whole")


SLOW = """
import sys, time
from cuvee.engine import merge_op
write = merge_op._Merge.write
def slow(self, merged, start):
    time.sleep(0.2)
    write(self, merged, start)
merge_op._Merge.write = slow
from cuvee.cli import main
main(sys.argv[1:])
"""


def workers_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_worker_processes_and_their_parent_die_together(victim: str, family: Family, here: Path) -> None:
    (here / "recipe.yml").write_text(recipe(TEXT, family))
    arguments = ["merge", "recipe.yml", "out", "--processes", "2", "--threads", "2", "--quiet"]
    command = [sys.executable, "-c", SLOW, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(workers := workers_of(process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid if victim == "parent" else workers[0], signal.SIGKILL)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    if victim == "parent":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 2
        assert errors.startswith("error: a worker process was ended from outside\n")
    cuvee.merge(recipe(TEXT, family), here / "out")  # the lock is free
    assert sorted(path.name for path in here.iterdir()) == ["out", "recipe.yml"]


def test_workers_report_how_long_each_tensor_took(family: Family, here: Path) -> None:
    log = here / "log.jsonl"
    text = here / "recipe.yml"
    text.write_text(recipe(TEXT, family))
    subprocess.run(
        [sys.executable, "-m", "cuvee", "merge", "recipe.yml", "out", "--processes", "2", "--log-json", str(log)],
        check=True,
        capture_output=True,
    )
    done = [event for line in log.read_text().splitlines() if (event := json.loads(line))["event"] == "done"]
    assert len(done) == 30
    assert all(event["seconds"] > 0 for event in done)
