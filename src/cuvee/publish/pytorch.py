"""A finished output's safetensors shards rewritten as PyTorch pickles, for programs that read nothing else.

It moves bytes from one container to the other, shard by shard; what the tensors mean is not known here.
"""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.errors import OutputError
from cuvee.tensors import disk
from cuvee.tensors.dtypes import name_of
from cuvee.tensors.header import Entry, Header, read_header
from cuvee.tensors.location import Directory

_SAFE_INDEX = "model.safetensors.index.json"
_PICKLE_INDEX = "pytorch_model.bin.index.json"


def to_pytorch(out: Path) -> None:
    """`out` with pytorch_model.bin (or numbered shards and their index) in place of its safetensors files.

    Each shard goes as soon as its successor is durable, so the disk holds one shard twice at most, and memory
    none: tensors are views of the mapped file.

    Raises:
        OutputError: if torch is missing, `out` holds no safetensors file, or one cannot be written.
    """
    require_torch()
    location = Directory(out)
    sizes = location.sizes()
    shards = sorted(name for name in sizes if name.endswith(".safetensors") and "/" not in name)
    if not shards:
        raise OutputError(f"no safetensors file in {out} to rewrite for PyTorch", path=str(out))
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        header = read_header(partial(location.read, shard), sizes[shard], shard)
        name = "pytorch_model.bin"
        if len(shards) > 1:
            name = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        _save(out / shard, header, out / name)
        (out / shard).unlink()
        weight_map |= dict.fromkeys(header.tensors, name)
        total += sum(entry.stop - entry.start for entry in header.tensors.values())
    (out / _SAFE_INDEX).unlink(missing_ok=True)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        disk.write_file(out / _PICKLE_INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def require_torch() -> None:
    """Nothing, if torch is there; asked before a merge starts, so that it does not fail at its end.

    Raises:
        OutputError: if torch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "writing PyTorch .bin files needs torch, which is not installed",
            fix='pip install "cuvee[torch]", or leave out --no-safe-serialization',
        ) from error


def _save(shard: Path, header: Header, target: Path) -> None:
    """`target`, durable: the state dict that `shard` holds."""
    import torch

    # Copy-on-write: torch wants a writable buffer, and nothing is ever written to it.
    mapped = np.memmap(shard, np.uint8, mode="c")
    try:
        torch.save({name: _view(mapped, entry) for name, entry in header.tensors.items()}, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
        reason = str(error).split("\n", 1)[0]
        raise OutputError(f"cannot write {target}: {reason}", fix="check the free space", path=str(target)) from error


def _view(mapped: np.ndarray[Any, Any], entry: Entry) -> Any:
    import torch

    dtype = getattr(torch, name_of(entry.dtype))
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.start).reshape(entry.shape)
