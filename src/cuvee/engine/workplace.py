"""Where a merge works until it is finished: `OUT.partial`, held by one run at a time, kept when the run stops early.

    OUT.partial/
        .cuvee-merge    says that the directory is a merge's; the run that works there holds the lock on it
        journal         which tensors are done (see `journal`)
        model/          the output as far as it is made; it becomes OUT when it is whole
        NAME.journal, NAME/   the same of a stage before, whose results the output depends on

Nothing but a whole model is ever at OUT, and nothing in OUT.partial itself loads. What is merged is not known here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cuvee.engine.journal import read_journal
from cuvee.errors import OutputError
from cuvee.tensors import disk
from cuvee.tensors.locks import locked

MARKER = ".cuvee-merge"


@dataclass(frozen=True)
class Workplace:
    """A directory in which this process alone makes the output `final`; of what is done there, one stage."""

    home: Path
    final: Path
    stage: str = ""
    """The name of a stage whose results are only needed on the way; empty for the output itself."""

    @property
    def folder(self) -> Path:
        """Where the stage's files are written."""
        return self.home / (self.stage or "model")

    @property
    def journal(self) -> Path:
        """The file that says what is done."""
        return self.home / (f"{self.stage}.journal" if self.stage else "journal")

    def before(self, stage: str) -> Workplace:
        """The same place for a stage on the way."""
        return replace(self, stage=stage)

    def forget(self) -> None:
        """Leaves nothing to go on from."""
        for journal in self.home.glob("*journal"):
            disk.remove_file(journal)

    def publish(self) -> None:
        """Makes the folder the output, in one step; an old output stays until then.

        Raises:
            OutputError: if it cannot; the old output is then where it was.

        """
        for path in (*self.folder.rglob("*"), self.folder):
            if path.is_dir():
                disk.sync_directory(path)
        disk.replace_directory(self.folder, self.final)
        disk.sync_directory(self.final.parent)

    def remove(self) -> None:
        """Removes the directory; what says whose it is goes last, so that a removal cut short can be ended."""
        disk.keep_only(self.home, {MARKER, self.journal.name})
        disk.remove_file(self.journal)
        disk.remove_file(self.home / MARKER)
        with suppress(OSError):  # another run has come in between, which is its right
            self.home.rmdir()


@contextmanager
def claim(final: Path) -> Iterator[Workplace]:
    """The workplace for the output `final`, whose parents are made; gone at the end, unless its journal tells of work.

    An error that leaves work behind says so in a note (PEP 678): how much, and where.

    Raises:
        OutputError: if another merge works there, or the directory is somebody else's.

    """
    place = Workplace(final.with_name(final.name + ".partial"), final)
    made = [parent for parent in place.home.parents if not parent.exists()]
    _refuse_foreign(place.home)
    try:
        with locked(place.home / MARKER):
            try:
                _end_publishing(place)
                yield place
            except BaseException as error:
                if kept := _kept(place):
                    _note(error, kept)
                else:
                    place.remove()
                raise
            place.remove()
    except BaseException:
        for folder in (place.home, *made):
            with suppress(OSError):  # not empty: somebody uses it
                folder.rmdir()
        raise


def reserved_bytes(place: Workplace) -> int:
    """Bytes of the disk that an earlier run has taken for this output already."""
    files = place.folder.rglob("*") if place.folder.is_dir() else ()
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in files)


def tell_lacking(error: OutputError, place: Workplace, wanted: int) -> None:
    """Adds to an error of a full disk how much more space the `wanted` bytes of weights need there."""
    if error.facts.get("errno") != errno.ENOSPC:
        return
    needed, free = wanted - reserved_bytes(place), disk.free_bytes(place.home)
    if needed > free:
        error.expected, error.found = f"{_size(needed)} free", f"{_size(free)} free"
        error.fix = f"free {_size(needed - free)} more, then run the same command again"


def _refuse_foreign(home: Path) -> None:
    """Raises an OutputError unless `home` is a merge's, empty (its run was killed before it marked it) or not there."""
    try:
        held = [path.name for path in home.iterdir()]
    except FileNotFoundError:  # or not any more
        held = []
    except OSError:
        held = [home.name]
    if MARKER not in held and (held or home.is_symlink()):
        raise OutputError(
            f"{home} is in the way: a merge works in a directory of this name, and this one is not a merge's",
            fix="move it away, or choose another output",
            path=str(home),
        )


def _end_publishing(place: Workplace) -> None:
    """Puts right what a run left that was killed while one output took the other's place."""
    disk.put_back(place.folder, place.final)
    entries = read_journal(place.journal)
    if entries and place.final.is_dir() and place.final.stat().st_ino == entries.folder:
        disk.keep_only(place.home, {MARKER})


def _kept(place: Workplace) -> str | None:
    """What is done and can be gone on from, in words: of the output if that was begun, else of the stages before."""
    stages = sorted(path.name.removesuffix(".journal") for path in place.home.glob("?*.journal"))
    for stage in (place, *map(place.before, stages)):
        try:
            entries = read_journal(stage.journal)
        except OutputError:
            continue
        if entries and entries.done and stage.folder.is_dir():
            size = sum(entries.done.values())
            return f"kept:     {len(entries.done)} of {entries.tensors} tensors ({_size(size)}) in {place.home}"
    return None


def _size(count: int) -> str:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{count / unit:.2f} {name}" for unit, name in units if count >= unit), f"{count} bytes")


def _note(error: BaseException, text: str) -> None:
    """What `add_note` does from Python 3.11 on."""
    error.__notes__ = [*getattr(error, "__notes__", []), text]  # type: ignore[attr-defined]
