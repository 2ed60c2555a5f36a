"""PyTorch state dicts (`.bin`, `.pt`, `.pth`), read where they lie and without running code a pickle may hold.

torch's weights-only loader says which tensors there are and maps the file instead of reading it; the zip
directory says where each storage begins. Together they give byte ranges like those of a safetensors header. What
cannot be read in ranges (files from before torch 1.6, transposed tensors, big-endian files) is written once to a
safetensors file. Which checkpoint the file belongs to, and what its tensors mean, is not known here.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cuvee.errors import CheckpointError
from cuvee.tensors import disk
from cuvee.tensors.dtypes import code_of, itemsize
from cuvee.tensors.header import build_header, read_header
from cuvee.tensors.pickle_scan import check_archive, check_legacy
from cuvee.tensors.sources import Stored

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_SAFE_TORCH = (2, 6)  # earlier weights-only loaders could be made to run code (CVE-2025-32434)
_MAX_NESTING = 3
_MOST_SHARING = 16  # bytes of tensors for each byte of the file: tied weights are stored once
# What torch and its unpickler raise, in one version or another, for a file that is not what it should be.
_LOAD_FAILURES = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    EOFError,
    OverflowError,
    MemoryError,
    OSError,
)


def read_state_dict_layout(path: Path, converted: Path | None = None) -> dict[str, Stored]:
    """Where the bytes of every tensor of a pickled state dict lie, in the order of the state dict.

    Args:
        path: the file; what torch 1.6 or newer wrote is read in place.
        converted: a folder for tensors that cannot be; they are written there once and found again.

    Raises:
        CheckpointError: if torch is missing, or the file is corrupt, holds code, or is not a state dict.
        OutputError: if `converted` cannot be written.
    """
    if not _is_zip(path):
        return _legacy_layout(path, converted)
    members, byte_order = _storage_members(path)
    tensors = _named_tensors(_load(path, mapped=True), path)
    _check_sizes(tensors, path)
    codes = {name: _code(tensor, name, path) for name, tensor in tensors.items()}
    places = _places(tensors, members, path) if byte_order == "little" else {}
    others = {name: tensor for name, tensor in tensors.items() if name not in places}
    rewritten = _converted(others, codes, path, converted) if others else {}
    file = os.path.abspath(path)  # noqa: PTH100 (resolving would follow the links that the Hub's cache is made of)
    in_place = {name: Stored(file, at, codes[name], tuple(tensors[name].shape)) for name, at in places.items()}
    return {name: in_place.get(name) or rewritten[name] for name in tensors}


def _legacy_layout(path: Path, converted: Path | None) -> dict[str, Stored]:
    """The layout of a file from before torch 1.6, which has no directory of its storages."""
    known = _conversion(path, converted) if converted else None
    if known and known.is_file():
        return _read_converted(known)
    check_legacy(path)
    tensors = _named_tensors(_load(path, mapped=False), path)
    _check_sizes(tensors, path)
    codes = {name: _code(tensor, name, path) for name, tensor in tensors.items()}
    return _converted(tensors, codes, path, converted)


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZIP_MAGIC
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", file=str(path)) from error


def _storage_members(path: Path) -> tuple[dict[int, int], str]:
    """Size in bytes of every storage in the file by the offset of its first byte, and their byte order."""
    members: dict[int, int] = {}
    order = b"little"
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                _, _, name = member.filename.partition("/")
                if name == "constants.pkl":
                    raise _bad(path, "a TorchScript program, not a state dict", fix="save its state_dict()")
                if name == "byteorder":
                    order = archive.read(member)
                if name.startswith("data/"):
                    if member.compress_type != zipfile.ZIP_STORED:
                        raise _bad(
                            path,
                            "its zip entries are compressed",
                            expected="entries stored as they are, as torch.save writes them",
                            fix="save the state dict again with torch.save, or as safetensors",
                        )
                    members[_data_start(file, member)] = member.file_size
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise _bad(path, "corrupt or incomplete", found=str(error)[:200], fix="fetch the file again") from error
    return members, order.decode(errors="replace")


def _data_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """The offset of an entry's bytes: the local header's name and padding differ from the directory's."""
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER_BYTES)
    name, padding = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + _LOCAL_HEADER_BYTES + name + padding


def _torch() -> Any:
    """The torch module, if it can be trusted with strangers' files."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "reading PyTorch .bin and .pt files needs torch, which is not installed",
            fix="pip install 'cuvee[torch]', or use a checkpoint in safetensors",
        ) from error
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or (int(version[1]), int(version[2])) < _SAFE_TORCH:
        raise CheckpointError(
            "this torch is too old to read pickled files safely",
            expected="torch 2.6 or newer",
            found=f"torch {torch.__version__}",
            fix="pip install --upgrade 'cuvee[torch]', or use a checkpoint in safetensors",
        )
    return torch


def _load(path: Path, *, mapped: bool) -> Any:
    """The unpickled object: only tensors and plain containers are ever made; mapped tensors stay on the disk."""
    torch = _torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks of its own classes there: nothing a user could act on
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _LOAD_FAILURES as error:
        text = str(error).strip()
        if refused := re.search(r"GLOBAL (\S+)", text):
            raise _bad(
                path,
                f"it asks for {refused[1].rstrip('.,')}, and nothing in a checkpoint is executed",
                expected="tensors in plain dictionaries",
                fix="use a checkpoint in safetensors, or save only the state dict",
            ) from error
        found = f"{type(error).__name__}: {text}".splitlines()[0][:200]
        raise _bad(path, "corrupt, or not a state dict", found=found, fix="fetch the file again") from error


def _named_tensors(loaded: Any, path: Path, depth: int = 0) -> dict[str, Any]:
    """The tensors of a state dict, which may lie alone inside dictionaries (`{"state_dict": {...}}`)."""
    torch = _torch()
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise _bad(path, "not a state dict", expected="a dictionary of tensors", found=f"one {kind}")
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    inner = [key for key, value in loaded.items() if isinstance(value, dict) and _holds_tensors(value, depth + 1)]
    if len(inner) + bool(tensors) > 1:
        raise _bad(
            path,
            "it holds more than one set of tensors",
            expected="one state dict",
            found=", ".join(map(repr, [*inner, *tensors][:5])),
            fix="save only the state dict that you mean",
        )
    if inner:
        return _named_tensors(loaded[inner[0]], path, depth + 1)
    if not tensors:
        keys = ", ".join(map(repr, list(loaded)[:5]))
        raise _bad(path, "it holds no tensors", found=keys[:200] or "an empty dictionary")
    for key in tensors:
        if not isinstance(key, str):
            raise _bad(path, "a tensor's name is not text", found=repr(key)[:80])
    return tensors


def _holds_tensors(value: Mapping[Any, Any], depth: int) -> bool:
    torch = _torch()
    level = {id(value): value}  # each once, however often a pickle repeats it
    for _ in range(depth, _MAX_NESTING + 1):
        if any(isinstance(item, torch.Tensor) for each in level.values() for item in each.values()):
            return True
        level = {id(item): item for each in level.values() for item in each.values() if isinstance(item, dict)}
    return False


def _check_sizes(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuses tensors that repeat a few bytes over and over: written out they would fill any disk."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _MOST_SHARING * path.stat().st_size + (1 << 20):
        raise _bad(path, "its tensors share bytes without end", found=f"{total} bytes of tensors")


def _code(tensor: Any, name: str, path: Path) -> str:
    """The safetensors code of a tensor's dtype, if it is a plain tensor with values."""
    torch = _torch()
    code = code_of(str(tensor.dtype))
    if code is None or tensor.layout != torch.strided or tensor.device.type != "cpu":
        found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device.type}"
        raise _bad(path, f"tensor {name!r} is of a kind that cannot be merged", found=found, tensor=name)
    return code


def _places(tensors: Mapping[str, Any], members: Mapping[int, int], path: Path) -> dict[str, int]:
    """The byte offset of every tensor that lies in the file row by row, as it is.

    Raises:
        CheckpointError: if the storages that the pickle speaks of are not those that the file holds.
    """
    storages = {(item.data_ptr(), item.nbytes()) for item in (t.untyped_storage() for t in tensors.values())}
    begin = _mapping_begin({storage for storage in storages if storage[1]}, members)
    if begin is None:
        raise _bad(path, "its tensors do not match its zip entries", fix="fetch the file again")
    return {
        name: tensor.data_ptr() - begin if tensor.numel() else 0
        for name, tensor in tensors.items()
        if tensor.is_contiguous() and not tensor.is_neg()
    }


def _mapping_begin(storages: set[tuple[int, int]], members: Mapping[int, int]) -> int | None:
    """The address at which the file is mapped.

    Storages are (address, bytes) inside one mapping. torch does not tell where that begins, but only the true
    beginning puts every storage onto a zip entry of just its size.
    """
    if not storages:
        return 0
    address, size = max(storages, key=lambda storage: storage[1])
    begins = [
        address - start
        for start, count in members.items()
        if count == size
        and (address - start) % mmap.PAGESIZE == 0
        and all(members.get(other - address + start) == other_size for other, other_size in storages)
    ]
    return begins[0] if len(begins) == 1 else None


def _converted(
    tensors: Mapping[str, Any], codes: Mapping[str, str], path: Path, folder: Path | None
) -> dict[str, Stored]:
    """The tensors as they are kept, contiguous, in a safetensors file of `folder`; written if they are not there."""
    if folder is None:
        raise _bad(
            path,
            f"{len(tensors)} of its tensors must be rewritten before they can be read in ranges",
            found="no folder to write them to",
            fix="save the checkpoint as safetensors",
        )
    target = _conversion(path, folder)
    known = _read_converted(target) if target.is_file() else {}
    if tensors.keys() <= known.keys():
        return known
    _write(target, tensors, codes)
    return _read_converted(target)


def _conversion(path: Path, folder: Path) -> Path:
    """Where the rewritten tensors of one version of a file are kept."""
    real = path.resolve()
    facts = real.stat()
    key = hashlib.sha256(f"{real}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:20]
    return folder / f"{path.stem}-{key}.safetensors"


def _read_converted(target: Path) -> dict[str, Stored]:
    with disk.descriptor_of(target) as descriptor:

        def read(start: int, stop: int) -> bytes:
            part = bytearray(stop - start)
            disk.read_into(descriptor, memoryview(part), start, target.name)
            return bytes(part)

        header = read_header(read, target.stat().st_size, target.name)
    file = os.path.abspath(target)  # noqa: PTH100 (the same spelling for every file of a plan)
    return {name: Stored(file, item.start, item.dtype, item.shape) for name, item in header.tensors.items()}


def _write(target: Path, tensors: Mapping[str, Any], codes: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, with one tensor in memory at a time."""
    torch = _torch()
    sizes = {name: tensor.numel() * itemsize(codes[name]) for name, tensor in tensors.items()}
    header = build_header(((name, codes[name], tuple(tensors[name].shape), sizes[name]) for name in tensors), {})
    with _scratch(target, header, len(header) + sum(sizes.values())) as (part, descriptor):
        position = len(header)
        for name, tensor in tensors.items():
            rows = tensor.detach().resolve_neg().contiguous()
            # The stride of one element may be anything, and then its bytes could not be looked at.
            flat = rows.as_strided((rows.numel(),), (1,)).view(torch.uint8)
            disk.write_at(descriptor, memoryview(flat.numpy()), position, part)
            position += sizes[name]


@contextmanager
def _scratch(target: Path, header: bytes, size: int) -> Iterator[tuple[Path, int]]:
    """A file that bears another name until it is complete."""
    part = target.with_name(f"{target.name}.{os.getpid()}.partial")
    if not target.parent.is_dir():
        disk.make_directory(target.parent)
    part.unlink(missing_ok=True)
    try:
        disk.preallocate(part, header, size)
        descriptor = disk.open_to_write(part)
        try:
            yield part, descriptor
        finally:
            os.close(descriptor)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _bad(path: Path, what: str, **more: Any) -> CheckpointError:
    return CheckpointError(f"{path.name}: {what}", file=str(path), **more)
