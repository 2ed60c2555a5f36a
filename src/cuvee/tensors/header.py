"""The safetensors header: parsed and checked in full before anything believes it; and written.

Format: 8 bytes little-endian header length, then a JSON object name -> {dtype, shape, data_offsets}, then the data.
(https://huggingface.co/docs/safetensors). Offsets are needed here and the library does not give them, hence our own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import CODES, itemsize

MAX_HEADER_BYTES = 100_000_000
MAX_NAME_LENGTH = 1024
_MAX_TENSORS = 1 << 20
_MAX_OTHERS = 1 << 20  # signs that do not belong to tensors: __metadata__ may hold whole documents
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 1 << 62


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header; `start` and `stop` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(read: Callable[[int, int], bytes], size: int, name: str) -> Header:
    """The header of a safetensors file of `size` bytes, of which `read(start, stop)` gives any range.

    Raises:
        CheckpointError: if anything about the header is not as the format says, or the file is too short or too long.

    """

    def bad(what: str, **more: Any) -> CheckpointError:
        fix = more.pop("fix", "the file is corrupt or incomplete: fetch it again")
        return CheckpointError(f"{name} is not a valid safetensors file: {what}", fix=fix, file=name, **more)

    if size < 8:
        raise bad("too short to hold a header", found=f"{size} bytes")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise bad(
            "its header does not fit",
            expected=f"at most {min(size - 8, MAX_HEADER_BYTES)} bytes",
            found=f"{length} bytes",
        )
    raw = read(8, 8 + length)
    _check_extent(raw, bad)
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_compact)
    except UnicodeDecodeError:
        raise bad("its header is not UTF-8") from None
    except _DuplicateNameError as error:
        raise bad(f"its header names {error.args[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise bad(f"its header is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise bad("its header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("its __metadata__ is not a map from text to text")
    data_start = 8 + length
    entries = {key: _entry(key, table[key], data_start, bad) for key in table}
    _check_cover(entries, data_start, size, bad)
    return Header(entries, metadata)


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The header bytes for tensors given as (name, dtype, shape, bytes) in file order, padded to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, count in tensors:
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + count]}
        position += count
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class _DuplicateNameError(ValueError):
    """A JSON object names a key twice."""


def name_fault(name: object) -> str | None:
    """What is wrong with a tensor's name; None if nothing is."""
    if not isinstance(name, str) or not name:
        return "is empty or not text"
    if len(name) > MAX_NAME_LENGTH:
        return f"is longer than {MAX_NAME_LENGTH} characters"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not text"
    return None if name.isprintable() else "holds characters that cannot be printed"


def _check_extent(raw: bytes, bad: Callable[..., CheckpointError]) -> None:
    """Refuses, before anything is made of it, a header whose values would take far more memory than its text."""
    tensors = raw.count(b"data_offsets")
    if tensors > _MAX_TENSORS:
        raise bad("its header names too many tensors", expected=f"at most {_MAX_TENSORS}", found=f"{tensors}")
    needed = {b"[": 2, b"{": 1, b":": 4, b",": 4 + _MAX_DIMENSIONS}
    if any(raw.count(sign) > each * tensors + _MAX_OTHERS for sign, each in needed.items()):
        raise bad("its header holds lists, objects and values that describe no tensors")


def _compact(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object: an entry's three values as a tuple, which takes a fraction of the memory; others as a dict."""
    if len(pairs) == 3 and {key for key, _ in pairs} == _ENTRY_KEYS:
        values = dict(pairs)
        return values["dtype"], values["shape"], values["data_offsets"]
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateNameError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return table


def _entry(key: str, value: Any, data_start: int, bad: Callable[..., CheckpointError]) -> Entry:
    if fault := name_fault(key):
        raise bad(f"the tensor name {key[:80]!r} {fault}", tensor=key[:MAX_NAME_LENGTH])
    if isinstance(value, dict) and value.keys() >= _ENTRY_KEYS:  # with more keys than the format has
        value = tuple(value[part] for part in ("dtype", "shape", "data_offsets"))
    if not isinstance(value, tuple):
        raise bad(f"tensor {key!r} lacks dtype, shape or data_offsets", tensor=key)
    dtype, shape, offsets = value
    if not isinstance(dtype, str) or dtype not in CODES:
        raise bad(
            f"tensor {key!r} has a dtype that is not known here",
            expected=", ".join(sorted(CODES)),
            found=str(dtype)[:40],
            tensor=key,
            fix="save the checkpoint in one of these dtypes",
        )
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise bad(f"tensor {key!r} has an impossible shape", found=str(shape)[:80], tensor=key)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"tensor {key!r} has impossible offsets", found=str(offsets)[:80], tensor=key)
    count = math.prod(shape)
    if count > _MAX_ELEMENTS or offsets[1] - offsets[0] != count * itemsize(dtype):
        raise bad(
            f"tensor {key!r}: its bytes do not match its shape",
            expected=f"{count * itemsize(dtype)} bytes for {dtype} {shape}",
            found=f"{offsets[1] - offsets[0]} bytes",
            tensor=key,
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _check_cover(entries: Mapping[str, Entry], data_start: int, size: int, bad: Callable[..., CheckpointError]) -> None:
    """Tensors must follow each other without gap or overlap and end where the file ends."""
    position = data_start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            kind = "overlaps another tensor" if entry.start < position else "leaves a gap before it"
            raise bad(f"tensor {key!r} {kind}", tensor=key)
        position = entry.stop
    if position != size:
        kind = "cut short" if position > size else "longer than its tensors"
        raise bad(f"the file is {kind}", expected=f"{position} bytes", found=f"{size} bytes")
