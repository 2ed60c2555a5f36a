"""What a checkpoint's safetensors files hold, read with nothing but the standard library.

Deliberately apart from Cuvee's own reader: a benchmark that checks an output with the code that wrote it proves
nothing. It knows no values, only names, dtypes, shapes and where the bytes lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor; `start` and `stop` are byte offsets in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def stored_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint's safetensors files by name.

    Raises:
        ValueError: if there are no such files, a name is there twice, or a file is not as long as it says.

    """
    tensors: dict[str, Tensor] = {}
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{checkpoint} holds no safetensors file")
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            table = json.loads(stream.read(length))
        table.pop("__metadata__", None)
        for name, entry in table.items():
            if name in tensors:
                raise ValueError(f"{name} is stored twice in {checkpoint}")
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = Tensor(file, entry["dtype"], tuple(entry["shape"]), start, stop)
        end = max((tensor.stop for tensor in tensors.values() if tensor.file == file), default=8 + length)
        if end != file.stat().st_size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes where its header says {end}")
    return tensors


def check_output(checkpoint: Path, expected: Mapping[str, tuple[int, ...]], dtype: str) -> str | None:
    """The first thing wrong with a merge's output, or None: names, shapes, dtype and byte counts."""
    try:
        tensors = stored_tensors(checkpoint)
    except (OSError, ValueError) as error:
        return str(error)
    if missing := sorted(expected.keys() - tensors.keys()):
        return f"{len(missing)} tensors are missing, {missing[0]} first"
    if extra := sorted(tensors.keys() - expected.keys()):
        return f"{len(extra)} tensors too many, {extra[0]} first"
    for name, shape in expected.items():
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            return f"{name} is {tensor.dtype} {tensor.shape}, not {dtype} {shape}"
        if tensor.stop - tensor.start != math.prod(shape) * ITEM_BYTES[dtype]:
            return f"{name} has {tensor.stop - tensor.start} bytes"
    if not (checkpoint / "config.json").is_file():
        return "there is no config.json"
    return None
