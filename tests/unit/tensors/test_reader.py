from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from cuvee.errors import CheckpointError
from cuvee.tensors.reader import FileReader


def test_each_thread_has_its_own_buffer(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(5000))
    (tmp_path / "ones").write_bytes(b"\1" * 5000)
    with FileReader(lambda name: tmp_path / name) as reader:
        mine = reader.read("zeros", 0, 5000)
        thread = threading.Thread(target=reader.read, args=("ones", 0, 5000))
        thread.start()
        thread.join()
        assert not mine.any(), "another thread wrote into this one's buffer"
        reader.read("ones", 0, 100)
        assert mine[:100].all(), "a thread's buffer is used again"


def test_large_ranges_get_a_larger_buffer(tmp_path: Path) -> None:
    data = np.arange(300_000, dtype=np.uint32)
    (tmp_path / "data").write_bytes(data.tobytes())
    with FileReader() as reader:
        name = str(tmp_path / "data")
        np.testing.assert_array_equal(reader.read(name, 40, 80).view(np.uint32), data[10:30])
        np.testing.assert_array_equal(reader.read(name, 0, data.nbytes).view(np.uint32), data)
        target = np.zeros(5, np.uint32)
        reader.read_into(name, 8, memoryview(target.view(np.uint8)))  # type: ignore[arg-type]
        np.testing.assert_array_equal(target, data[2:7])


def test_files_are_opened_once_and_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    asked: list[str] = []

    def locate(name: str) -> Path:
        asked.append(name)
        return tmp_path / name

    with FileReader(locate) as reader:
        descriptor = reader.descriptor("a")
        assert [reader.descriptor("a"), reader.read("a", 0, 3).tobytes()] == [descriptor, b"abc"]
        assert asked == ["a"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_the_name_in_messages_is_the_plans(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with (
        FileReader(lambda _: tmp_path / "a") as reader,
        pytest.raises(CheckpointError, match=r"^hf://org/model/a ends"),
    ):
        reader.read("hf://org/model/a", 0, 4)
