"""Merges of arrays through the real engine, with plans put together by hand: no recipe, no planner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.engine.execute import EngineSettings, execute
from cuvee.numerics.scan import Scan
from cuvee.planning.ops import Plan, PlannedModel, TensorOp
from cuvee.planning.shards import lay_out
from cuvee.progress import Silent
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Directory
from cuvee.tensors.sources import Joined, Stored
from support.checkpoints import Array, read_checkpoint, write_checkpoint

SEED = 11


def plan_of(
    ops: Sequence[TensorOp], models: Sequence[str], *, seed: int = SEED, max_shard_bytes: int = 1 << 40
) -> Plan:
    """A plan of these ops."""
    placed, shards = lay_out(ops, max_shard_bytes, {"format": "pt"})
    facts: dict[str, Any] = dict.fromkeys((field.name for field in fields(Plan)), ())
    facts |= {
        "models": tuple(PlannedModel(name, name, "") for name in models),
        "base": 0,
        "ops": placed,
        "shards": shards,
        "seed": seed,
        "method": "linear",
        "config_edits": {},
        "version": "0",
    }
    return Plan(**facts)


def op_of(
    name: str,
    sources: Sequence[Stored | Joined],
    dtype: str,
    method: str | None,
    parameters: Mapping[str, Any],
    has_base: bool,
) -> TensorOp:
    """An op without a place in a file."""
    return TensorOp(
        name=name,
        shape=sources[0].shape,
        dtype=dtype,
        shard=0,
        offset=0,
        sources=tuple(sources),
        models=tuple(range(len(sources))),
        has_base=has_base,
        method=method,
        parameters=parameters,
    )


def merge_arrays(
    folder: Path,
    method: str | None,
    models: Sequence[Mapping[str, Array]],
    parameters: Mapping[str, Any],
    *,
    dtype: str,
    has_base: bool,
    seed: int = SEED,
    **settings: Any,
) -> dict[str, Array]:
    """What the engine makes of the models' tensors (the base first if `has_base`).

    Args:
        folder: an empty place for the inputs and the output.
        method: as recipes say it; None copies.
        models: name -> values; they are called `model0`, `model1` and so on.
        parameters: by argument name, per-model ones as tuples.
        dtype: safetensors code to write.
        has_base: whether the first model is the base.
        seed: for random masks.
        settings: of `EngineSettings`.

    """
    names = [f"model{i}" for i in range(len(models))]
    for name, tensors in zip(names, models, strict=True):
        write_checkpoint(folder / name, tensors)
    return merge_folders([folder / name for name in names], folder / "out", method, parameters, dtype=dtype,
                         has_base=has_base, seed=seed, **settings)  # fmt: skip


def merge_folders(
    folders: Sequence[Path],
    out: Path,
    method: str | None,
    parameters: Mapping[str, Any],
    *,
    dtype: str,
    has_base: bool,
    seed: int = SEED,
    **settings: Any,
) -> dict[str, Array]:
    """What the engine makes of checkpoints that are written already, all by one method."""
    opened = [open_checkpoint(Directory(folder), folder.name) for folder in folders]
    ops = [
        op_of(name, [checkpoint.tensors[name] for checkpoint in opened], dtype, method, parameters, has_base)
        for name in opened[0].tensors
    ]
    located = {uri: Path(uri) for checkpoint in opened for uri in checkpoint.weight_files}
    out.mkdir()
    chosen = {"threads": 1} | settings
    execute(plan_of(ops, [c.name for c in opened], seed=seed), out, EngineSettings(**chosen), located, Silent())
    return read_checkpoint(out)


def scan_of(block: Any, grain: int | None = None, align: int = 1) -> Scan:
    """A scan over arrays in memory, cut into ranges of `grain` elements (one range if None)."""
    flat = [array.reshape(-1) for array in block]
    size = math.prod(flat[0].shape)
    step = grain or max(size, 1)
    ranges = tuple((start, min(start + step, size)) for start in range(0, size, step))
    shape = block[0].shape

    def read(start: int, stop: int) -> Any:
        arrays = tuple(array[start:stop] for array in flat)
        if align > 1:
            arrays = tuple(array.reshape(-1, shape[-1]) for array in arrays)
        return type(block)(arrays, start, block.key)

    return Scan(shape, len(block), ranges, read, lambda function, spans: [function(span) for span in spans], align)


def ulp(values: Any, dtype: str) -> Array:
    """The distance of `values` to the next number of a float format, in float64 (that of subnormals near zero)."""
    digits, smallest = {"F16": (10, -14), "BF16": (7, -126), "F32": (23, -126), "F64": (52, -1022)}[dtype]
    size = np.abs(np.asarray(values, np.float64))
    exponent = np.where(size > 0, np.frexp(size)[1] - 1, smallest)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, smallest) - digits))
