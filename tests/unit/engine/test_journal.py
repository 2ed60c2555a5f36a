from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cuvee.engine import journal as module
from cuvee.engine.files import create_shards
from cuvee.engine.identity import Identity
from cuvee.engine.journal import Journal, open_journal, read_journal
from cuvee.errors import CONTINUE_WITH, CheckpointError, CuveeError, OutputError, PlanError
from cuvee.planning.ops import Output, Plan
from cuvee.progress import Silent
from cuvee.tensors import disk
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of

NAMES = "abcdef"


def identity(**changed: Any) -> Identity:
    keys = ("version", "libraries", "device", "files", "models", "methods", "recipe", "plan")
    return {**{key: {} for key in keys}, "allow_nonfinite": False, **changed}


@pytest.fixture
def plan() -> Plan:
    """Six tensors of 40 bytes, two in each of three files."""
    source = Stored("f", 0, "F32", (10,))
    return plan_of([op_of(name, [source], "F32", None, {}, False) for name in NAMES], ["m"], max_shard_bytes=80)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def opened(home: Path, plan: Plan, **more: Any) -> tuple[Journal, str | None]:
    journal, why = open_journal(home / "journal", home / "model", plan, more.pop("now", identity()), **more)
    create_shards(home / "model", plan.shards)
    return journal, why


def run(home: Path, plan: Plan, *names: str, **more: Any) -> tuple[set[str], str | None]:
    """A run that does these tensors: what was done before it, and why it started over."""
    journal, why = opened(home, plan, **more)
    with journal:
        for name in names:
            journal.watching(Silent()).finished(name)
    return set(journal.done), why


def test_a_run_goes_on_where_others_stopped(home: Path, plan: Plan) -> None:
    assert run(home, plan, "a", "c") == (set(), None)
    assert run(home, plan, "b") == ({"a", "c"}, None)
    assert run(home, plan) == ({"a", "b", "c"}, None)
    entries = read_journal(home / "journal")
    assert entries is not None
    assert (dict(entries.done), entries.tensors) == ({"a": 40, "b": 40, "c": 40}, 6)


def test_another_merge_starts_over_and_says_why(home: Path, plan: Plan) -> None:
    run(home, plan, "a")
    (home / "model" / "model-00001-of-00003.safetensors").write_bytes(b"old")
    assert run(home, plan, "b", now=identity(recipe="other")) == (set(), "the recipe changed")
    assert run(home, plan, now=identity(recipe="other")) == ({"b"}, None)
    assert run(home, plan, now=identity(recipe="other"), fresh=True) == (set(), "--fresh was given")
    # Nothing was done, so nothing is lost that would have to be told.
    assert run(home, plan) == (set(), None)


def test_a_folder_that_is_another_one_is_not_believed(home: Path, plan: Plan) -> None:
    run(home, plan, "a")
    (home / "model").rename(home / "theirs")
    (home / "model").mkdir()
    for shard in (home / "theirs").iterdir():
        shard.rename(home / "model" / shard.name)
    assert run(home, plan) == (set(), "its files are not the ones that were written")


@pytest.mark.parametrize("harm", ["gone", "short", "header"])
def test_tensors_of_a_file_that_was_harmed_are_done_again(harm: str, home: Path, plan: Plan) -> None:
    run(home, plan, "a", "b", "c", "e")
    shard = home / "model" / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    if harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(whole[:-1] if harm == "short" else whole[:20] + b"?" + whole[21:])
    assert run(home, plan) == ({"a", "b", "e"}, None)
    # The file is whole again, but still without the tensor: what was taken back stays taken back.
    assert shard.read_bytes()[:20] == whole[:20]
    assert run(home, plan) == ({"a", "b", "e"}, None)
    assert run(home, plan, "c", "d") == ({"a", "b", "e"}, None)
    assert run(home, plan) == ({"a", "b", "c", "d", "e"}, None)


def test_files_that_only_a_finished_output_has_are_removed(home: Path, plan: Plan) -> None:
    run(home, plan, *NAMES)
    (home / "model" / "config.json").write_text("{}")
    (home / "model" / "extra").mkdir()
    run(home, plan)
    assert sorted(path.name for path in (home / "model").iterdir()) == [shard.name for shard in plan.shards]


def test_lines_that_were_being_written_are_not_believed(home: Path, plan: Plan) -> None:
    run(home, plan, "a")
    run(home, plan, "b")
    path = home / "journal"
    entries = read_journal(path)
    assert entries is not None
    whole = path.read_bytes()
    first, _, rest = whole[: entries.length].partition(b"\n")
    one = len(first) + 1 + rest.index(b"\n") + 1
    seen = []
    for length in range(entries.length + 1):
        path.write_bytes(whole[:length] + bytes(entries.length - length))  # the rest never reached the disk
        found = read_journal(path)
        seen.append(set(found.done) if found else None)
    assert seen[: len(first) + 1] == [None] * (len(first) + 1)
    assert seen[len(first) + 1 : one] == [set()] * (one - len(first) - 1)
    assert seen[one : entries.length] == [{"a"}] * (entries.length - one)
    assert seen[entries.length] == {"a", "b"}
    # A run goes on after the last line that can be believed, and writes over what follows it.
    path.write_bytes(whole[: entries.length - 5])
    assert run(home, plan, "f") == ({"a"}, None)
    assert run(home, plan) == ({"a", "f"}, None)


def test_a_flipped_bit_ends_what_is_believed(home: Path, plan: Plan) -> None:
    run(home, plan, "a")
    whole = (home / "journal").read_bytes()
    place = whole.index(b'"a"') + 1
    (home / "journal").write_bytes(whole[:place] + b"b" + whole[place + 1 :])
    assert run(home, plan) == (set(), None)


def test_journals_of_other_formats_are_none(home: Path, plan: Plan) -> None:
    assert read_journal(home / "journal") is None
    for text in (b"", b"text\n", module._line({"journal": 99, "identity": {}, "folder": 1, "tensors": 1})):
        (home / "journal").write_bytes(text)
        assert read_journal(home / "journal") is None
        assert run(home, plan) == (set(), None)


def test_a_tensor_is_recorded_only_after_its_bytes_are_durable(
    home: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had been made durable when each line of the journal was written, and when the line itself was."""
    told: list[str] = []
    sync, sync_directory, write_at = disk.sync, disk.sync_directory, disk.write_at

    def note_sync(descriptor: int, path: Path) -> None:
        sync(descriptor, path)
        told.append(f"sync {path.name}")

    def note_directory(path: Path) -> None:
        sync_directory(path)
        told.append(f"names in {path.name}")

    def note_write(descriptor: int, data: memoryview, offset: int, path: Path) -> None:
        told.append(f"write {path.name}")
        write_at(descriptor, data, offset, path)

    journal, _ = opened(home, plan)
    monkeypatch.setattr(disk, "sync", note_sync)
    monkeypatch.setattr(disk, "sync_directory", note_directory)
    monkeypatch.setattr(disk, "write_at", note_write)
    with journal:
        journal.finished("a")
        journal.finished("d")
        journal.commit()
        shards = ["sync model-00001-of-00003.safetensors", "sync model-00002-of-00003.safetensors"]
        names = [f"names in {name}" for name in ("model", "home", home.parent.name)]
        assert sorted(told[:2]) == shards
        assert told[2:] == [*names, "write journal", "sync journal"]
        told.clear()
        journal.finished("b")
        journal.commit()
        assert told == [shards[0], "write journal", "sync journal"]


def test_bytes_are_sent_to_the_disk_before_they_are_waited_for(
    home: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the files that finished tensors are in, and only those; nothing is recorded for it."""
    sent: list[str] = []
    start_writing = disk.start_writing

    def note(path: Path) -> None:
        start_writing(path)
        sent.append(path.name)

    monkeypatch.setattr(disk, "start_writing", note)
    monkeypatch.setattr(module, "_SEND_SECONDS", 0.01)
    monkeypatch.setattr(module, "_EVERY_SECONDS", 1e9)
    journal, _ = opened(home, plan)
    with journal:
        journal.finished("c")
        deadline = time.monotonic() + 20
        while not sent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = read_journal(home / "journal")
        assert found is not None
        assert not found.done
    assert set(sent) == {"model-00002-of-00003.safetensors"}
    assert run(home, plan) == ({"c"}, None)


@pytest.fixture
def wide(plan: Plan) -> Plan:
    """The same, and every tensor of the first file writes something into the last one too."""
    beside = Output("beside", (1,), "F32", 2)
    return replace(plan, ops=tuple(replace(op, further=(beside,)) if op.shard == 0 else op for op in plan.ops))


def test_all_files_that_an_op_writes_are_durable_before_it_is_recorded(
    home: Path, wide: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(disk, "sync", lambda _, path: synced.append(path.name))
    run(home, wide, "a")
    assert {wide.shards[0].name, wide.shards[2].name} == set(synced[:2])
    assert synced[2] == "journal"


def test_an_op_is_lost_with_any_file_that_it_writes(home: Path, wide: Plan) -> None:
    run(home, wide, *NAMES)
    (home / "model" / wide.shards[2].name).unlink()
    assert run(home, wide)[0] == {"c", "d"}


def test_groups_are_recorded_while_the_merge_runs(home: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    journal, _ = opened(home, plan)
    with journal:
        journal.finished("a")
        deadline = time.monotonic() + 20
        while not (found := read_journal(home / "journal")) or not found.done:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert set(found.done) == {"a"}
        assert "cuvee-journal" in {thread.name for thread in threading.enumerate()}
    assert "cuvee-journal" not in {thread.name for thread in threading.enumerate()}


def test_much_is_recorded_at_once(home: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 1000.0)
    monkeypatch.setattr(module, "_EVERY_BYTES", 80)
    journal, _ = opened(home, plan)
    with journal:
        journal.finished("a")
        journal.finished("b")
        deadline = time.monotonic() + 20
        while not (found := read_journal(home / "journal")) or not found.done:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_disk_that_cannot_keep_the_bytes_stops_the_merge(
    home: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, path: Path) -> None:
        raise OutputError("cannot write: Input/output error")

    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    journal, _ = opened(home, plan)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", fail)
        with pytest.raises(OutputError, match="Input/output error"), journal:  # noqa: PT012
            journal.finished("a")
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                journal.finished("b")
                time.sleep(0.01)
    assert run(home, plan) == (set(), None)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (KeyboardInterrupt(), True),
        (MemoryError(), True),
        (ArithmeticError("a fault of our own"), True),
        (OutputError("full"), True),
        (CheckpointError("cannot read", errno=5), True),
        (PlanError("a worker was killed", errno=12), True),
        (CheckpointError("not finite", **{CONTINUE_WITH: "--allow-nonfinite"}), True),
        (CheckpointError("they differ"), False),
        (CuveeError("anything else that the user has to mend"), False),
    ],
    ids=repr,
)
def test_a_journal_stays_if_a_run_could_go_on(error: BaseException, kept: bool, home: Path, plan: Plan) -> None:
    journal, _ = opened(home, plan)
    with pytest.raises(type(error)), journal:  # noqa: PT012
        journal.finished("a")
        raise error
    assert (read_journal(home / "journal") is not None) == kept
    assert run(home, plan)[0] == ({"a"} if kept else set())
