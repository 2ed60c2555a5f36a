"""Checkpoints made by hand and read back, through the `safetensors` library: the oracle for our own headers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
"""Codes of the safetensors format, written out a second time so that a slip in ours shows."""


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Path:
    """One safetensors file, written by the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}, path, metadata)
    return path


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Array] | Sequence[Mapping[str, Array]],
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint directory; several mappings become shards with an index."""
    if isinstance(tensors, Mapping):
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(tensors, 1):
            file = f"model-{number:05d}-of-{len(tensors):05d}.safetensors"
            write_tensors(folder / file, shard, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        write_index(folder, weight_map)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    """model.safetensors.index.json, true or not."""
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(weight_map)})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def read_file(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file, as the library reads it."""
    return {
        name: np.frombuffer(view["data"], DTYPES[view["dtype"]]).reshape(view["shape"])
        for name, view in safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }


def read_checkpoint(folder: Path) -> dict[str, Array]:
    """Every tensor of a checkpoint directory, shard by shard."""
    found: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = read_file(path)
        assert not found.keys() & part.keys(), "a tensor lies in two shards"
        found |= part
    return found
