from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cuvee.errors import OutputError
from cuvee.tensors import disk, locks
from cuvee.tensors.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from cuvee.tensors.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.1)


def test_a_lock_names_its_holder_and_is_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "lock"):
            assert (tmp_path / "lock").read_text().strip() == str(os.getpid())


def test_a_second_holder_is_refused_even_in_one_process(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        with (
            pytest.raises(OutputError, match=f"another merge .process {os.getpid()}.") as refused,
            locked(tmp_path / "lock"),
        ):
            pass
        assert refused.value.owner == str(os.getpid())
    with locked(tmp_path / "lock"):
        pass


def test_a_holder_that_is_killed_holds_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {other.pid}"), locked(tmp_path / "lock"):
            pass
        other.kill()
        other.wait(timeout=10)
        with locked(tmp_path / "lock"):
            assert (tmp_path / "lock").read_text().strip() == str(os.getpid())


def test_a_lock_on_a_file_that_its_holder_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that is done removes the file; who waited for it must not hold the lock of a file that is gone."""
    path, real, waited = tmp_path / "lock", locks._try_to_lock, []

    def just_removed(descriptor: int) -> bool:
        if not waited:
            path.unlink()
        waited.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(locks, "_try_to_lock", just_removed)
    with locked(path):
        assert path.read_text().strip() == str(os.getpid())
        with pytest.raises(OutputError), locked(path):
            pass
    assert len(waited) >= 3


def test_a_directory_that_its_holder_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that is done removes the directory too, perhaps between our making it and our opening the file."""
    path, make, made = tmp_path / "work" / "lock", disk.make_directory, []

    def just_removed(directory: Path) -> None:
        make(directory)
        made.append(directory)
        if len(made) == 1:
            directory.rmdir()

    monkeypatch.setattr(disk, "make_directory", just_removed)
    with locked(path):
        assert path.read_text().strip() == str(os.getpid())
    assert made == [path.parent] * 2


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "lock")
    for path in (tmp_path / "file" / "lock", tmp_path / "link"):
        with pytest.raises(OutputError, match="cannot write"), locked(path):
            pass
