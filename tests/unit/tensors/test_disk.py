from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import CheckpointError, OutputError
from cuvee.tensors import disk

DATA = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(DATA)
    return file


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    found = disk.open_to_write(path)
    yield found
    os.close(found)


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def read(descriptor: int, count: int, offset: int) -> bytes:
    buffer = bytearray(count)
    disk.read_into(descriptor, memoryview(buffer), offset, "the file")
    return bytes(buffer)


def test_reads_a_range(descriptor: int) -> None:
    assert read(descriptor, 1000, 77) == DATA[77:1077]
    assert read(descriptor, 0, 77) == b""


def test_short_reads_are_continued(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:7]], offset))
    assert read(descriptor, 1000, 77) == DATA[77:1077]


def test_systems_without_preadv_read_alike(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.readv
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(os, "readv", lambda fd, buffers: real(fd, [buffers[0][:300]]))
    assert read(descriptor, 1000, 77) == DATA[77:1077]


def test_a_file_that_ends_early_is_named(descriptor: int) -> None:
    with pytest.raises(CheckpointError, match="the file ends before its tensors do") as caught:
        read(descriptor, 1000, len(DATA) - 10)
    assert caught.value.found == "10 bytes"
    assert caught.value.file == "the file"


def test_a_read_that_fails_is_named(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(CheckpointError, match=f"cannot read the file: {os.strerror(errno.EIO)}"):
        read(descriptor, 10, 0)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot open .*absent"):
        disk.open_to_read(tmp_path / "absent")
    with pytest.raises(OutputError, match=r"cannot write .*absent"):
        disk.open_to_write(tmp_path / "absent")


def test_writes_at_an_offset(path: Path, descriptor: int) -> None:
    disk.write_at(descriptor, memoryview(b"hello"), 100, path)
    assert path.read_bytes() == DATA[:100] + b"hello" + DATA[105:]


def test_short_writes_are_continued(path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    disk.write_at(descriptor, memoryview(b"hello world"), 100, path)
    assert path.read_bytes() == DATA[:100] + b"hello world" + DATA[111:]


def test_systems_without_pwrite_write_alike(path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite")
    disk.write_at(descriptor, memoryview(b"hello"), 100, path)
    assert path.read_bytes() == DATA[:100] + b"hello" + DATA[105:]


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "may write"), (errno.EIO, None)],
)
def test_writes_that_fail_say_what_to_do(
    code: int, advice: str | None, path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", failing(code))
    with pytest.raises(OutputError, match=os.strerror(code)) as caught:
        disk.write_at(descriptor, memoryview(b"hello"), 0, path)
    assert caught.value.path == str(path)
    assert caught.value.errno == code
    assert (caught.value.fix is None) if advice is None else (advice in (caught.value.fix or ""))


def copy(path: Path, start: int, offset: int, count: int) -> bytes:
    """What a copy of a range leaves in a file of zeros."""
    target = path.with_name("target")
    target.write_bytes(bytes(len(DATA)))
    with disk.descriptor_of(path) as source:
        out = disk.open_to_write(target)
        try:
            disk.copy_range(source, start, out, offset, count, "the file", target)
        finally:
            os.close(out)
    return target.read_bytes()


COPIED = bytes(11) + DATA[5:3005] + bytes(len(DATA) - 3011)


def test_copies_a_range(path: Path) -> None:
    assert copy(path, 5, 11, 3000) == COPIED
    assert copy(path, 5, 11, 0) == bytes(len(DATA))


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_copies_plainly_where_the_call_is_refused(code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(code))
    monkeypatch.setattr(disk, "_CHUNK", 700)
    assert copy(path, 5, 11, 3000) == COPIED


def test_copies_plainly_where_there_is_no_such_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_CAN_COPY_RANGE", False)
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO))
    assert copy(path, 5, 11, 3000) == COPIED


def test_goes_on_plainly_where_the_call_gives_up_half_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.copy_file_range, []

    def half(source: int, target: int, count: int, start: int, offset: int) -> int:
        calls.append(count)
        if len(calls) > 2:
            return 0
        return real(source, target, min(count, 900), start, offset)

    monkeypatch.setattr(os, "copy_file_range", half)
    assert copy(path, 5, 11, 3000) == COPIED
    assert calls == [3000, 2100, 1200]


def test_a_copy_that_fails_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
        copy(path, 5, 11, 3000)


def test_a_copy_beyond_the_source_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="ends before"):
        copy(path, len(DATA) - 100, 0, 200)


def test_preallocates_header_and_size(tmp_path: Path) -> None:
    disk.preallocate(tmp_path / "new", b"header", 5000)
    assert (tmp_path / "new").read_bytes() == b"header" + bytes(4994)
    with pytest.raises(OutputError, match="cannot write"):
        disk.preallocate(tmp_path / "new", b"header", 5000)


def test_a_full_disk_is_noticed_when_space_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
        disk.preallocate(tmp_path / "new", b"header", 5000)


def test_file_systems_that_cannot_reserve_still_get_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    disk.preallocate(tmp_path / "new", b"header", 5000)
    assert (tmp_path / "new").stat().st_size == 5000


def test_small_files_are_written_with_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_file(tmp_path / "a" / "b" / "c.json", b"{}")
    assert (tmp_path / "a" / "b" / "c.json").read_bytes() == b"{}"
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OutputError):
        disk.write_file(tmp_path / "d", b"{}")


def tree(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def old_and_new(folder: Path) -> tuple[Path, Path]:
    new, old = folder / "new", folder / "old"
    for path in (new, old):
        path.mkdir()
        (path / path.name).write_text(path.name)
    return new, old


@pytest.mark.parametrize("swaps", [True, False], ids=["swapped", "moved aside"])
def test_a_directory_takes_the_place_of_another(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = old_and_new(tmp_path)
    if not swaps:
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    disk.replace_directory(new, old)
    assert tree(tmp_path) == {"old/new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_directory_goes_where_none_was(tmp_path: Path) -> None:
    new, old = old_and_new(tmp_path)
    shutil.rmtree(old)
    disk.replace_directory(new, old)
    assert tree(tmp_path) == {"old/new": "new"}


def test_the_old_directory_stays_where_the_new_one_cannot_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = old_and_new(tmp_path)
    shutil.rmtree(new)
    monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    with pytest.raises(OutputError, match="cannot write"):
        disk.replace_directory(new, old)
    assert tree(tmp_path) == {"old/old": "old"}


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    disk.make_directory(tmp_path / "a" / "b")
    disk.make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        disk.make_directory(tmp_path / "file")


def test_an_old_directory_that_was_left_aside_is_put_back(tmp_path: Path) -> None:
    new, old = old_and_new(tmp_path)
    disk.put_back(new, old)
    assert tree(tmp_path) == {"new/new": "new", "old/old": "old"}
    old.rename(tmp_path / "new.replaced")
    disk.put_back(new, old)
    assert tree(tmp_path) == {"new/new": "new", "old/old": "old"}


def test_all_but_the_named_files_go(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("below")
    disk.keep_only(tmp_path, {"a", "c", "d"})
    assert tree(tmp_path) == {"a": "a", "c": "c"}


def test_what_is_made_durable_is_the_file_and_the_names(
    path: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.sync(descriptor, path)
    disk.sync_directory(path.parent)
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        disk.sync(descriptor, path)
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        disk.sync_directory(path.parent)
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    disk.sync_directory(path.parent)  # some file systems know no such thing


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    disk.remove_tree(tmp_path / "absent")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    disk.remove_tree(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()


def test_free_bytes_are_those_of_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {tmp_path: shutil.disk_usage(tmp_path)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage[path])
    assert disk.free_bytes(tmp_path / "not" / "yet" / "there") == usage[tmp_path].free


def test_hints_are_only_hints(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.will_need(descriptor, 0, 100)
    disk.release(descriptor, 0, 100)
    assert read(descriptor, 10, 0) == DATA[:10]
    monkeypatch.setattr(disk, "_CAN_ADVISE", False)
    monkeypatch.setattr(os, "posix_fadvise", failing(errno.EIO))
    disk.will_need(descriptor, 0, 100)
    disk.release(descriptor, 0, 100)


def test_a_full_disk_says_how_much_more_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 2 * 10**9)
    with pytest.raises(OutputError, match="No space left") as caught:
        disk.preallocate(tmp_path / "x", b"", 5 * 10**9)
    assert (caught.value.expected, caught.value.found) == ("5.00 GB free", "2.00 GB free")
    assert "free 3.00 GB more" in caught.value.fix


def test_more_files_may_be_open_where_the_system_lets_us() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        disk.allow_open_files(20)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        disk.allow_open_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 456
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("with_preadv", [True, False])
def test_rows_are_gathered_one_after_another(
    with_preadv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_preadv:
        monkeypatch.delattr(os, "preadv", raising=False)
    (tmp_path / "table").write_bytes(b"head" + bytes(range(40)))
    descriptor = disk.open_to_read(tmp_path / "table")
    try:
        filled = bytearray(16)
        disk.gather(descriptor, memoryview(filled), 4, 4, [(0, 9, 1), (1, 2, 2), (3, 0, 1)], "table")
        assert list(filled) == [*range(36, 40), *range(8, 16), *range(4)]
        with pytest.raises(CheckpointError, match="table ends before"):
            disk.gather(descriptor, memoryview(filled), 4, 4, [(0, 1, 1), (1, 9, 2)], "table")
    finally:
        os.close(descriptor)
