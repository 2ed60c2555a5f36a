from __future__ import annotations

import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cuvee.errors import CheckpointError, OutputError
from cuvee.tensors import disk
from cuvee.tensors.pickled import read_state_dict_layout
from cuvee.tensors.sources import Stored

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def raw(stored: Stored, count: int) -> bytes:
    """The bytes that a layout points at, read by nothing of ours."""
    with Path(stored.file).open("rb") as file:
        file.seek(stored.offset)
        return file.read(count)


def float32_at(stored: Stored) -> np.ndarray[Any, Any]:
    assert stored.dtype == "F32"
    return np.frombuffer(raw(stored, 4 * int(np.prod(stored.shape))), "<f4").reshape(stored.shape)


def rezip(source: Path, target: Path, edit: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Writes the archive again with other tools than torch's: another alignment, entries replaced by `edit`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            inner = entry.filename.partition("/")[2]
            new.writestr(entry.filename, edit.get(inner, old.read(entry)))


@pytest.mark.parametrize(("code", "dtype"), DTYPES.items())
def test_every_dtype_is_found_in_place(tmp_path: Path, code: str, dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 1], [0, 1, 0]]).to(dtype)
    torch.save({"first": torch.zeros(5), "w": values}, tmp_path / "m.bin")
    stored = read_state_dict_layout(tmp_path / "m.bin")["w"]
    assert stored == Stored(str(tmp_path / "m.bin"), stored.offset, code, (2, 3))
    assert raw(stored, 6 * values.element_size()) == bytes(values.view(torch.uint8).flatten().tolist())


def test_views_scalars_empties_and_ties_keep_their_places(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        whole=whole,
        rows=whole[1:3],
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        tied=whole,
        steps=3,
        note="not a tensor",
    )
    torch.save(state, tmp_path / "m.bin")
    layout = read_state_dict_layout(tmp_path / "m.bin")
    assert list(layout) == ["whole", "rows", "scalar", "empty", "parameter", "tied"]
    assert layout["tied"] == layout["whole"]
    assert layout["rows"].offset == layout["whole"].offset + 6 * 4
    assert layout["rows"].shape == (2, 6)
    assert float32_at(layout["whole"]).tolist() == np.arange(24.0).reshape(4, 6).tolist()
    assert float32_at(layout["scalar"]).item() == 7.5
    assert layout["empty"].shape == (0, 3)
    assert float32_at(layout["parameter"]).tolist() == [1.0, 2.0]


def test_an_archive_that_other_tools_wrote_is_read_right(tmp_path: Path) -> None:
    state = {f"layer.{index}": torch.full((16,), float(index)) for index in range(12)}
    torch.save(state, tmp_path / "m.bin")
    rezip(tmp_path / "m.bin", tmp_path / "again.bin", {})
    layout = read_state_dict_layout(tmp_path / "again.bin")
    assert [float32_at(layout[name]).tolist() for name in state] == [[float(index)] * 16 for index in range(12)]


def test_tensors_that_are_not_laid_out_by_rows_are_rewritten_once(tmp_path: Path) -> None:
    state = {
        "plain": torch.arange(6.0).reshape(2, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "expanded": torch.tensor([4.0]).expand(3),
        "column": torch.arange(6.0).reshape(2, 3)[:, 1],
        "negated": torch.tensor([1 + 2j]).conj().imag,
    }
    torch.save(state, tmp_path / "m.bin")
    layout = read_state_dict_layout(tmp_path / "m.bin", tmp_path / "new" / "cache")
    assert list(layout) == list(state)
    assert layout["plain"].file == str(tmp_path / "m.bin")
    assert float32_at(layout["transposed"]).tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert float32_at(layout["expanded"]).tolist() == [4.0, 4.0, 4.0]
    assert float32_at(layout["column"]).tolist() == [1.0, 4.0]
    assert float32_at(layout["negated"]).tolist() == [-2.0]
    (written,) = (tmp_path / "new" / "cache").iterdir()
    with safe_open(written, "np") as library:
        assert sorted(library.keys()) == ["column", "expanded", "negated", "transposed"]
        assert library.get_tensor("transposed").tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    before = written.stat()
    assert read_state_dict_layout(tmp_path / "m.bin", tmp_path / "new" / "cache") == layout
    assert (written.stat().st_mtime_ns, written.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_changed_file_is_rewritten_again(tmp_path: Path) -> None:
    for number in (1.0, 2.0):
        torch.save({"w": torch.full((2, 3), number).t()}, tmp_path / "m.bin")
        os.utime(tmp_path / "m.bin", (number, number))
        layout = read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")
        assert float32_at(layout["w"]).tolist() == [[number] * 2] * 3


def test_a_file_from_before_torch_1_6_is_rewritten_and_then_needs_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = torch.arange(4.0)
    state = {"a": tied, "half": torch.tensor([1.5, -2.0]).bfloat16(), "b": tied, "epoch": 4}
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    layout = read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")
    assert list(layout) == ["a", "half", "b"]
    assert float32_at(layout["a"]).tolist() == float32_at(layout["b"]).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (layout["half"].dtype, raw(layout["half"], 4)) == ("BF16", b"\xc0\x3f\x00\xc0")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache") == layout


def test_big_endian_values_are_turned_around(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0, -2.5])}, tmp_path / "m.bin")
    big = {"byteorder": b"big", "data/0": np.array([1.0, -2.5], ">f4").tobytes()}
    rezip(tmp_path / "m.bin", tmp_path / "big.bin", big)
    layout = read_state_dict_layout(tmp_path / "big.bin", tmp_path / "cache")
    assert float32_at(layout["w"]).tolist() == [1.0, -2.5]


def test_without_a_folder_nothing_can_be_rewritten(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3).t()}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="must be rewritten"):
        read_state_dict_layout(tmp_path / "m.bin")


def test_a_failed_rewriting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OutputError("no space left")

    torch.save({"w": torch.ones(2, 3).t()}, tmp_path / "m.bin")
    monkeypatch.setattr(disk, "write_at", full_disk)
    with pytest.raises(OutputError):
        read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": {"lr": 0.1}},
        lambda state: {"checkpoint": {"model": state}, "optimizer": {"param_groups": [{"lr": 1}]}},
    ],
)
def test_a_state_dict_inside_others_is_found(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap({"w": torch.tensor([3.0])}), tmp_path / "m.pt")
    layout = read_state_dict_layout(tmp_path / "m.pt")
    assert list(layout) == ["w"]
    assert float32_at(layout["w"]).tolist() == [3.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"w": torch.ones(1)}, "ema": {"w": torch.ones(1)}}, "more than one set of tensors"),
        ({"model": {"w": torch.ones(1)}, "w": torch.ones(1)}, "more than one set of tensors"),
        ({"epoch": 3}, "no tensors"),
        ({}, "no tensors"),
        (torch.ones(2), "not a state dict"),
        ([torch.ones(2)], "not a state dict"),
        ({0: torch.ones(2)}, "not text"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is of a kind"),
        ({"w": torch.ones(2, device="meta")}, "'w' is of a kind"),
    ],
)
def test_what_is_not_one_plain_state_dict_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=words):
        read_state_dict_layout(tmp_path / "m.pt", tmp_path / "cache")


class Malicious:
    """A pickle of this runs a command where it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return (os.system, (self.command,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, zipped: bool) -> None:
    victim = tmp_path / "it-ran"
    state = {"w": torch.ones(2), "x": Malicious(f"touch {victim}")}
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system, and nothing in a checkpoint is executed"):
        read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")
    assert not victim.exists()
    # The same file does run its code where it is trusted: the proof above could fail.
    torch.load(tmp_path / "m.bin", weights_only=False)
    assert victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 60, 0.5, 0.9, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": torch.ones(400)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"m\.bin: corrupt"):
        read_state_dict_layout(path, tmp_path / "cache")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"\0" * 99, b"just some text\n" * 9, b"\x80\x02}q\0."])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_state_dict_layout(tmp_path / "m.bin", tmp_path / "cache")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        read_state_dict_layout(tmp_path / "m.bin")


def test_compressed_archives_and_programs_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(100)}, tmp_path / "m.bin")
    rezip(tmp_path / "m.bin", tmp_path / "small.bin", {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_state_dict_layout(tmp_path / "small.bin")
    with zipfile.ZipFile(tmp_path / "m.bin", "a") as archive:
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read_state_dict_layout(tmp_path / "m.bin")


@pytest.mark.parametrize("lie", ["storage", "tensor"])
def test_sizes_that_reach_beyond_the_entry_are_refused(tmp_path: Path, lie: str) -> None:
    torch.save({"w": torch.arange(8.0), "x": torch.arange(8.0), "y": torch.ones(16)}, tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "m.bin") as archive:
        pickled = archive.read("m/data.pkl")
    count = b"K\x08"  # BININT1 8: first the storage's elements, then the tensor's
    storage = pickled.index(count)
    tensor = pickled.index(count, storage + 1)
    edited = bytearray(pickled)
    edited[tensor + 1] = 9
    if lie == "storage":
        edited[storage + 1] = 9
    rezip(tmp_path / "m.bin", tmp_path / "lie.bin", {"data.pkl": bytes(edited)})
    with pytest.raises(CheckpointError, match=r"match its zip entries|corrupt"):
        read_state_dict_layout(tmp_path / "lie.bin", tmp_path / "cache")
    rezip(tmp_path / "m.bin", tmp_path / "truth.bin", {"data.pkl": pickled})
    assert float32_at(read_state_dict_layout(tmp_path / "truth.bin")["x"]).tolist() == list(range(8))


def test_without_torch_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"pip install 'cuvee\[torch\]'"):
        read_state_dict_layout(tmp_path / "m.bin")


def test_a_torch_that_can_be_tricked_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(CheckpointError, match="too old"):
        read_state_dict_layout(tmp_path / "m.bin")
