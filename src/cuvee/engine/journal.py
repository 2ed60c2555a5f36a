"""Which tensors of a merge are on the disk for good, so that a later run of the same merge need not do them again.

The journal is a text file: a line of identity, then a line for each group of finished tensors, all with checksums. A
group is written once the tensors' bytes would outlast a power failure: about every second, in a thread of its own, so
that workers never wait for the disk. Their bytes are sent there all the time, so that this thread hardly waits either.
Where it lies and who may write to it is not known here.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from cuvee.engine.files import shard_header
from cuvee.engine.identity import Identity, difference
from cuvee.errors import CONTINUE_WITH, CuveeError, OutputError
from cuvee.planning.ops import Plan, Shard, TensorOp
from cuvee.progress import Progress
from cuvee.tensors import disk

if TYPE_CHECKING:
    from typing_extensions import Self

_EVERY_SECONDS = 1.0
_EVERY_BYTES = 1 << 30
_SEND_SECONDS = 0.1  # between calls that set the writing to the disk going
_FORMAT = 1


@dataclass(frozen=True)
class Entries:
    """What a journal says.

    Attributes:
        identity: of the run that began it.
        folder: the inode of the folder that it speaks of.
        tensors: how many the whole merge has.
        done: the finished ones, with their bytes.
        length: bytes of the journal that can be believed; a line that was being written when the power failed is not
            among them.

    """

    identity: Identity
    folder: int
    tensors: int
    done: Mapping[str, int]
    length: int


def read_journal(path: Path) -> Entries | None:
    """What the journal at `path` says; None if there is none, or none that this version wrote."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}", path=str(path), errno=error.errno) from error
    records, length = [], 0
    for line in lines:
        record = _parsed(line)
        if record is None:
            break
        records.append(record)
        length += len(line) + 1
    if not records or records[0].get("journal") != _FORMAT:
        return None
    begin, *groups = records
    done: dict[str, int] = {}
    for group in groups:
        done |= group.get("done", {})
        for name in group.get("lost", ()):
            done.pop(name, None)
    return Entries(begin["identity"], begin["folder"], begin["tensors"], done, length)


def _parsed(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%08x %s\n" % (crc32(text), text)


class Journal:
    """The journal of a run, which records what its `watching` watcher is told of. Closing it records the rest.

    Left by an error after which no run can go on, it removes itself.
    """

    def __init__(self, path: Path, folder: Path, plan: Plan, begun: Entries | None, identity: Identity) -> None:
        """Goes on with the journal `begun`, or begins one; the plan's shard files are or will be in `folder`."""
        self.done: Mapping[str, int] = begun.done if begun else {}
        """Tensors that an earlier run finished, with their bytes."""
        self._path = path
        self._folder = folder
        self._shards = [folder / shard.name for shard in plan.shards]
        self._ops = {op.name: op for op in plan.ops}
        self._pending: list[TensorOp] = []
        self._pending_bytes = 0
        self._wake = threading.Condition()
        self._committing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: OutputError | None = None
        if begun is None:
            header = {"journal": _FORMAT, "identity": identity, "folder": folder.stat().st_ino}
            first = _line({**header, "tensors": len(plan.ops)})
            # Space for every line there will be: a disk that others fill up should not stop what fits.
            disk.preallocate(path, first, len(first) + sum(len(op.name) + 100 for op in plan.ops))
        self._end = begun.length if begun else len(first)
        self._descriptor = disk.open_to_write(path)
        self._names_are_durable = False

    def watching(self, progress: Progress) -> Progress:
        """A watcher that records every finished tensor and hands all events on."""
        return _Recorder(self, progress)

    def finished(self, name: str) -> None:
        """Notes that a tensor's bytes are written, if not yet on the disk; never waits for the disk.

        Raises:
            OutputError: if an earlier group could not be made durable.

        """
        op = self._ops[name]
        with self._wake:
            if self._failure is not None:
                raise self._failure
            self._pending.append(op)
            self._pending_bytes += op.nbytes
            if self._thread is None:  # not before: a process of more than one thread cannot be forked
                self._thread = threading.Thread(target=self._commit_groups, name="cuvee-journal", daemon=True)
                self._thread.start()
            if self._pending_bytes >= _EVERY_BYTES:
                self._wake.notify()

    def lose(self, shards: Collection[int]) -> None:
        """Takes back what earlier runs did in shard files that are not there any more."""
        written = {op.name: {output.shard for output in op.outputs} for op in self._ops.values()}
        names = [name for name, where in written.items() if where & set(shards) and name in self.done]
        if names:
            self.done = {name: count for name, count in self.done.items() if name not in set(names)}
            self._append({"lost": names})

    def commit(self) -> None:
        """Makes the bytes of all tensors finished so far durable, then says so in the journal."""
        with self._committing:
            with self._wake:
                group = list(self._pending)
            if not group:
                return
            for shard in {output.shard for op in group for output in op.outputs}:
                _sync(self._shards[shard])
            if not self._names_are_durable:
                within = sorted({shard.parent for shard in self._shards} | {self._folder}, reverse=True)
                for directory in (*within, self._path.parent, self._path.parent.parent):
                    disk.sync_directory(directory)
                self._names_are_durable = True
            done = {op.name: op.nbytes for op in group}
            self._append({"done": done})
            with self._wake:
                del self._pending[: len(group)]
                self._pending_bytes -= sum(done.values())

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _line(record)
        disk.write_at(self._descriptor, memoryview(line), self._end, self._path)
        disk.sync(self._descriptor, self._path)
        self._end += len(line)

    def _commit_groups(self) -> None:
        due = time.monotonic() + _EVERY_SECONDS
        while True:
            with self._wake:
                within = min(_SEND_SECONDS, _EVERY_SECONDS)
                self._wake.wait_for(lambda: self._closing or self._pending_bytes >= _EVERY_BYTES, within)
                if self._closing:
                    return
                many = self._pending_bytes >= _EVERY_BYTES
                changed = {output.shard for op in self._pending for output in op.outputs}
            try:
                if many or time.monotonic() >= due:
                    self.commit()
                    due = time.monotonic() + _EVERY_SECONDS
                else:
                    for shard in changed:
                        disk.start_writing(self._shards[shard])
            except OutputError as error:
                self._failure = error
                return

    def close(self) -> None:
        """Ends the journal's thread and records what is left."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._failure is not None:
                raise self._failure
            self.commit()
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            self.close()
            return
        with suppress(OutputError):  # what stopped the merge is what counts
            self.close()
        if not may_go_on(error):
            disk.remove_file(self._path)


def may_go_on(error: BaseException) -> bool:
    """Whether the same command, or the one that the error speaks of, would go on from here.

    It would after an interrupt, a fault of the machine or the network, or one of our own. A recipe or checkpoint that
    has to change makes another merge.
    """
    if not isinstance(error, CuveeError) or isinstance(error, OutputError):
        return True
    return "errno" in error.facts or CONTINUE_WITH in error.facts


def _sync(path: Path) -> None:
    descriptor = disk.open_to_write(path)
    try:
        disk.sync(descriptor, path)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Recorder:
    """Hands events on, and finished tensors to the journal too."""

    journal: Journal
    watcher: Progress

    def begin(self, stage: str, total_bytes: int) -> None:
        self.watcher.begin(stage, total_bytes)

    def advance(self, count: int) -> None:
        self.watcher.advance(count)

    def finished(self, name: str, count: int = 0, seconds: float = 0.0) -> None:
        self.journal.finished(name)
        self.watcher.finished(name, count, seconds)

    def end(self) -> None:
        self.watcher.end()

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        self.watcher.event(name, facts)


def open_journal(
    path: Path, folder: Path, plan: Plan, identity: Identity, *, fresh: bool = False
) -> tuple[Journal, str | None]:
    """The journal of this run, and why it starts over although an earlier run had begun (None if that is not so).

    Args:
        path: the journal's file.
        folder: where the shard files are; what is in it and cannot be used is removed.
        plan: what is to be done.
        identity: what the bytes depend on.
        fresh: whether to start over in any case.

    """
    before = read_journal(path)
    why = None
    if before is not None:
        why = "--fresh was given" if fresh else difference(before.identity, identity)
        # The inode tells our folder from the old output, which takes its place when the two are exchanged.
        if why is None and not (folder.is_dir() and folder.stat().st_ino == before.folder):
            why = "its files are not the ones that were written"
    if before is None or why is not None:
        disk.remove_file(path)
        disk.remove_tree(folder)
        disk.make_directory(folder)
        return Journal(path, folder, plan, None, identity), why if before and before.done else None
    whole = {number for number, shard in enumerate(plan.shards) if _is_whole(folder / shard.name, shard)}
    disk.keep_only(folder, {plan.shards[number].name for number in whole})
    journal = Journal(path, folder, plan, before, identity)
    journal.lose(set(range(len(plan.shards))) - whole)
    return journal, None


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether the file has its full size and its header: killed before, it is made anew."""
    header = shard_header(shard)
    if not path.is_file() or path.stat().st_size != shard.size:
        return False
    with disk.descriptor_of(path) as descriptor:
        found = bytearray(len(header))
        disk.read_into(descriptor, memoryview(found), 0, str(path))
    return found == header
