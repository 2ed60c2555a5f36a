"""What a pickle would do, found out without doing it: bombs are told from state dicts before torch reads them.

torch's weights-only loader runs no code, but a pickle of a few hundred bytes may still keep it busy for years, or ask
it for memory without end. This module reads opcodes and zip directories; what tensors are is not known here.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from cuvee.errors import CheckpointError

_MAX_PICKLE_BYTES = 256 << 20  # a hundred bytes a tensor are usual
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_EXPANDED = 1 << 16  # parts of a tuple once those it repeats are written out
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the storages' keys
# What weights are made with; torch also knows things that only make memory (bytearray) or other tensors.
_MAKERS = ("torch._utils _rebuild_", "torch.nn.parameter ", "collections OrderedDict", "torch Size", "torch device")
_DTYPES = ("float", "bfloat", "int", "uint", "bool", "complex", "per_")
_HARMLESS = {"_codecs encode", "collections Counter", "builtins set", "torch.serialization _get_layout"}
_MARK: Any = object()


def check_archive(path: Path) -> None:
    """Refuses a zip file whose directory or pickle is a bomb.

    Raises:
        CheckpointError: says which.
        zipfile.BadZipFile: if it is no zip file; other errors of that module likewise.

    """
    with path.open("rb") as file:
        if (size := _directory_bytes(file)) > _MAX_DIRECTORY_BYTES:
            raise _refusal(path, "its zip directory is too large", f"{size} bytes")
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = member.filename.partition("/")[2]
                if name.startswith("data/"):
                    continue
                if member.compress_type != zipfile.ZIP_STORED:
                    raise _refusal(path, f"its zip entry {name[:40]!r} is compressed", "")
                if name == "data.pkl":
                    if member.file_size > _MAX_PICKLE_BYTES:
                        raise _refusal(path, "its pickle is too large", f"{member.file_size} bytes")
                    with archive.open(member) as pickled:
                        check_pickle(pickled, path)


def check_legacy(path: Path) -> None:
    """Refuses a file from before torch 1.6, pickles one after another, if one of them is a bomb."""
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            check_pickle(file, path)


def check_pickle(file: IO[bytes], path: Path) -> None:
    """Refuses a pickle that makes what weights are not made of, or tuples of tuples without end.

    Raises:
        CheckpointError: says which; and for opcodes that cannot be followed.

    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    begin = file.tell()
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position is not None and position - begin > _MAX_PICKLE_BYTES:
                raise _refusal(path, "its pickle is too large", f"more than {_MAX_PICKLE_BYTES} bytes")
            if opcode.name == "GLOBAL":
                _check_maker(str(argument), path)
            _step(opcode, argument, stack, memo)
            if stack and stack[-1] is not _MARK and stack[-1] > _MAX_EXPANDED:
                raise _refusal(path, "its tuples repeat each other without end", "a pickle bomb")
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, MemoryError) as error:
        raise _refusal(path, "corrupt, or not a state dict", f"{type(error).__name__}: {error}"[:200]) from error


def _step(opcode: Any, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Does to a stack of sizes what the opcode does to objects: a tuple is as large as all that it is made of."""
    name = opcode.name
    if name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
        return
    if name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
        return
    popped: list[Any] = []
    before = opcode.stack_before
    if pickletools.markobject in before:
        while (item := stack.pop()) is not _MARK:
            popped.append(item)
        before = before[: before.index(pickletools.markobject)]
    popped += [stack.pop() for _ in before]
    if name.startswith("TUPLE"):
        stack.append(1 + sum(popped))
    else:
        stack += [_MARK if kind is pickletools.markobject else 1 for kind in opcode.stack_after]


def _check_maker(name: str, path: Path) -> None:
    module, _, what = name.partition(" ")
    storage = module.startswith("torch") and what.endswith("Storage")
    if not (
        storage or name.startswith(_MAKERS) or name in _HARMLESS or (module == "torch" and what.startswith(_DTYPES))
    ):
        raise CheckpointError(
            f"{path.name}: it asks for {name.replace(' ', '.', 1)[:100]}, and nothing in a checkpoint is executed",
            expected="tensors in plain dictionaries",
            fix="use a checkpoint in safetensors, or save only the state dict",
            file=str(path),
        )


def _directory_bytes(file: IO[bytes]) -> int:
    """The size of a zip file's directory, as its end says; 0 if it has no end (the reader will say so)."""
    size = file.seek(0, 2)
    tail_start = max(size - (1 << 16) - 22, 0)
    file.seek(tail_start)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return 0
    count: int = struct.unpack_from("<L", tail, end + 12)[0]
    locator = tail.rfind(b"PK\x06\x07", 0, end)
    if count == 0xFFFFFFFF and locator >= 0:
        file.seek(min(struct.unpack_from("<Q", tail, locator + 8)[0], size))
        record = file.read(56)
        count = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
    return count


def _refusal(path: Path, what: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: {what}",
        expected="a state dict as torch.save writes it",
        found=found or None,
        fix="fetch the file again, or use a checkpoint in safetensors",
        file=str(path),
    )
