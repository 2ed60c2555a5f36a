"""Pickles and zip files made to exhaust: each is refused before torch sees it, and plain ones are not."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cuvee.errors import CheckpointError
from cuvee.tensors.pickle_scan import check_archive, check_pickle
from cuvee.tensors.pickled import read_state_dict_layout


def hash_bomb(levels: int) -> bytes:
    """{(t, t): ...} with t a tuple of two of the one before: hashing it looks at 2**levels parts."""
    doubled = [b"h%ch%c\x86q%c0" % (level, level, level + 1) for level in range(levels)]
    return b"\x80\x02})q\x000" + b"".join(doubled) + b"h%cK\x01s." % levels


def archive(path: Path, pickled: bytes, *, compressed: bool = False, extra: dict[str, bytes] | None = None) -> Path:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as made:
        for name, data in {"data.pkl": pickled, "version": b"3\n", **(extra or {})}.items():
            made.writestr(f"archive/{name}", data)
    return path


def calls(maker: str, argument: bytes) -> bytes:
    module, name = maker.rsplit(".", 1)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


BOMBS: dict[str, tuple[bytes, str]] = {
    "hashes without end": (hash_bomb(60), "repeat each other"),
    "a terabyte of zeros": (calls("builtins.bytearray", b"\x8a\x06\0\0\0\0\0\x01"), "builtins.bytearray"),
    "a tensor out of nothing": (calls("torch.FloatTensor", b"\x8a\x06\0\0\0\0\0\x01"), "torch.FloatTensor"),
    "a shell": (calls("os.system", b"U\x02ls"), "os.system"),
    "no opcodes": (b"\xff\xff", "corrupt"),
    "no end": (b"\x80\x02]", "corrupt"),
    "pops from nothing": (b"\x80\x02s.", "corrupt"),
    "a memo never written": (b"\x80\x02h\x05.", "corrupt"),
    "text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fabc.", "corrupt"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused(case: str, tmp_path: Path) -> None:
    pickled, words = BOMBS[case]
    with pytest.raises(CheckpointError, match=words) as caught:
        check_pickle(io.BytesIO(pickled), Path("m.bin"))
    assert caught.value.file == "m.bin"
    with pytest.raises(CheckpointError, match=words):
        read_state_dict_layout(archive(tmp_path / "m.bin", pickled))


def test_a_hash_bomb_does_explode() -> None:
    """The case above is what it claims to be: with few levels it can be loaded, and has that many parts."""
    (key,) = pickle.loads(hash_bomb(3))

    def parts(value: tuple[object, ...]) -> int:
        return 1 + sum(parts(item) for item in value if isinstance(item, tuple))

    assert parts(key) == 2**4 - 1


def shared() -> dict[str, object]:
    """Dictionaries that repeat each other: a walk that does not remember would take 2000**3 steps."""
    inner: dict[str, object] = {}
    for _ in range(3):
        inner = {str(number): inner for number in range(2000)}
    return inner


def test_dictionaries_that_repeat_each_other_are_walked_once(tmp_path: Path) -> None:
    torch.save({"a": shared()}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_state_dict_layout(tmp_path / "m.bin")


def test_one_value_repeated_for_terabytes_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="share bytes without end"):
        read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["byteorder", "data.pkl", ".format_version"])
def test_entries_that_unpack_to_gigabytes_are_not_unpacked(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", b"\x80\x02}.", compressed=True, extra={name: bytes(1 << 26)})
    assert path.stat().st_size < 1 << 18
    with pytest.raises(CheckpointError, match="compressed"):
        read_state_dict_layout(path)


@pytest.mark.parametrize("wide", [False, True])
def test_a_zip_directory_of_gigabytes_is_not_read(wide: bool, tmp_path: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF if wide else 1 << 30, 0, 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4, 1)
    path = tmp_path / "m.bin"
    path.write_bytes(b"PK\3\4" + (record + locator if wide else b"") + end)
    with pytest.raises(CheckpointError, match="directory is too large"):
        check_archive(path)


KINDS: dict[str, Callable[[], object]] = {
    "tensors": lambda: {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(3)},
    "parameters": lambda: OrderedDict(a=torch.nn.Parameter(torch.ones(2))),
    "a module's state": lambda: torch.nn.Linear(2, 3).state_dict(),
    "a training state": lambda: {
        "state_dict": {"a": torch.ones(2)},
        "epoch": 3,
        "lr": [0.1, (1, 2)],
        "size": torch.Size([2]),
    },
    "quantised": lambda: {"a": torch.ones(2, dtype=torch.uint8), "b": torch.ones(2, dtype=torch.int8)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read(kind: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(KINDS[kind](), tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    assert "a" in read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache") or kind == "a module's state"
