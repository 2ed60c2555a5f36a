from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuvee.engine.identity import Identity
from cuvee.engine.journal import open_journal
from cuvee.engine.workplace import Workplace, claim, reserved_bytes
from cuvee.errors import CheckpointError, OutputError
from cuvee.planning.ops import Plan
from cuvee.tensors import disk, locks
from cuvee.tensors.sources import Stored
from support.merging import op_of, plan_of

IDENTITY: Identity = {
    key: {} for key in ("version", "libraries", "device", "files", "models", "methods", "recipe", "plan")
}
IDENTITY["allow_nonfinite"] = False


def a_plan() -> Plan:
    source = Stored("f", 0, "F32", (10,))
    return plan_of([op_of(name, [source], "F32", None, {}, False) for name in "abc"], ["m"])


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def do(place: Workplace, *names: str) -> None:
    """Does these tensors as the engine would."""
    journal, _ = open_journal(place.journal, place.folder, a_plan(), IDENTITY)
    with journal:
        for shard in a_plan().shards:
            if not (place.folder / shard.name).exists():
                text = shard.header.encode()
                disk.preallocate(place.folder / shard.name, len(text).to_bytes(8, "little") + text, shard.size)
        for name in names:
            journal.finished(name)


def stopped(out: Path, error: BaseException, *names: str) -> str | None:
    """What an error says is kept of these tensors."""
    with pytest.raises(type(error)) as raised, claim(out) as place:  # noqa: PT012
        do(place, *names)
        raise error
    notes = getattr(raised.value, "__notes__", [])
    return notes[0] if notes else None


def test_a_finished_output_takes_its_place_and_nothing_else_stays(tmp_path: Path) -> None:
    with claim(tmp_path / "a" / "out") as place:
        place.folder.mkdir()
        (place.folder / "config.json").write_text("{}")
        place.publish()
    assert tree(tmp_path) == {"a/out/config.json": "{}"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [ValueError(), KeyboardInterrupt(), OutputError("full")])
def test_what_is_done_is_kept_and_told(failure: BaseException, tmp_path: Path) -> None:
    note = stopped(tmp_path / "out", failure, "a", "c")
    assert note == f"kept:     2 of 3 tensors (80 bytes) in {tmp_path}/out.partial"
    with claim(tmp_path / "out") as place:
        journal, why = open_journal(place.journal, place.folder, a_plan(), IDENTITY)
        with journal:
            assert (dict(journal.done), why) == ({"a": 40, "c": 40}, None)
        assert reserved_bytes(place) >= a_plan().bytes_written
    assert list(tmp_path.iterdir()) == []


def test_stages_on_the_way_are_kept_too_until_they_are_forgotten(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, claim(tmp_path / "out") as place:  # noqa: PT012
        do(place.before("changes"), "a")
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [f"kept:     1 of 3 tensors (40 bytes) in {tmp_path}/out.partial"]
    with pytest.raises(ValueError), claim(tmp_path / "out") as place:  # noqa: PT012
        place.forget()
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_where_nothing_is_done_nothing_is_kept_and_new_parents_go(failure: type[BaseException], tmp_path: Path) -> None:
    assert stopped(tmp_path / "a" / "b" / "out", failure()) is None
    assert list(tmp_path.iterdir()) == []


def test_parents_that_others_use_by_then_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError), claim(tmp_path / "a" / "b" / "out"):  # noqa: PT012
        (tmp_path / "a" / "theirs").write_text("x")
        raise ValueError
    assert tree(tmp_path) == {"a/theirs": "x"}
    assert not (tmp_path / "a" / "b").exists()


def test_a_refusal_on_the_way_to_the_work_costs_no_earlier_work(tmp_path: Path) -> None:
    stopped(tmp_path / "out", KeyboardInterrupt(), "a")
    with pytest.raises(CheckpointError) as raised, claim(tmp_path / "out"):
        raise CheckpointError("no such file")
    assert raised.value.__notes__[0].startswith("kept:     1 of 3 tensors")


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out.partial"
    theirs.mkdir()
    (theirs / "f").write_text("x")
    with pytest.raises(OutputError, match="is in the way"), claim(tmp_path / "out"):
        pass
    assert tree(tmp_path) == {"out.partial/f": "x"}


def test_a_directory_that_goes_while_it_is_looked_at_was_another_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends just then removes its directory: between any two of our looks, and before we hold the lock."""
    stopped(tmp_path / "out", KeyboardInterrupt(), "a")
    home, looks = tmp_path / "out.partial", [Path.exists, Path.is_file, Path.is_dir, Path.iterdir]

    def going(look: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def found(path: Path) -> Any:
            answer = look(path)
            if path in (home, home / ".cuvee-merge"):
                shutil.rmtree(home, ignore_errors=True)
            return answer

        return found

    for look in looks:
        home.mkdir(exist_ok=True)
        (home / ".cuvee-merge").write_text("12345")
        with monkeypatch.context() as patch:
            patch.setattr(Path, look.__name__, going(look))
            with claim(tmp_path / "out") as place:
                patch.undo()
                assert (place.home / ".cuvee-merge").is_file()
    assert list(tmp_path.iterdir()) == []


def test_what_an_older_version_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / ".cuvee-merge").write_text("12345")
    (left / "model.safetensors").write_text("half")
    with claim(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_made_but_not_marked_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with claim(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_output_has_one_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.1)
    with claim(tmp_path / "out") as place:
        place.folder.mkdir()
        (place.folder / "f").write_text("mine")
        with pytest.raises(OutputError, match="another merge"), claim(tmp_path / "out"):
            pass
        with claim(tmp_path / "other"):
            pass
        assert (place.folder / "f").read_text() == "mine"


@pytest.mark.parametrize("swap", [True, False], ids=["swapped in one step", "moved aside"])
def test_a_run_killed_after_its_output_took_its_place_leaves_nothing_to_go_on_with(
    swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the workplace then is the old output, which must not be taken for half of the new one."""
    out = tmp_path / "out"
    out.mkdir()
    with claim(out) as place:
        do(place, "a", "b", "c")
        for path in place.folder.iterdir():
            shutil.copy(path, out)  # an old output that looks like the new one to the last byte of its header
        (out / "old").write_text("old")
        monkeypatch.setattr(disk, "remove_tree", lambda path: None)  # killed before the old one is removed
        if not swap:
            monkeypatch.setattr(disk, "_exchange", lambda first, second: False)
        place.publish()
        shutil.copytree(place.home, tmp_path / "killed")
    monkeypatch.undo()
    assert not (out / "old").exists()
    (tmp_path / "killed").rename(place.home)
    with claim(out) as again:
        assert not again.folder.exists()
        journal, why = open_journal(again.journal, again.folder, a_plan(), IDENTITY)
        with journal:
            assert (dict(journal.done), why) == ({}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_old_output_moved_aside_by_a_run_that_was_killed_then_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    stopped(out, KeyboardInterrupt(), "a")
    out.rename(tmp_path / "out.partial" / "model.replaced")
    with pytest.raises(KeyboardInterrupt), claim(out):
        raise KeyboardInterrupt
    assert tree(out) == {"old": "old"}
    with claim(out) as place:
        journal, _ = open_journal(place.journal, place.folder, a_plan(), IDENTITY)
        with journal:
            assert dict(journal.done) == {"a": 40}
