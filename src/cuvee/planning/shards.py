"""Which output file each tensor goes to, and where in it; and the files' headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cuvee.planning.ops import Shard, TensorOp
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.header import build_header


def lay_out(
    ops: Sequence[TensorOp], max_shard_bytes: int, metadata: Mapping[str, str]
) -> tuple[tuple[TensorOp, ...], tuple[Shard, ...]]:
    """The ops with shard and offset, in file order, and the files, named the Hub's way.

    A file holds at most `max_shard_bytes` of tensors unless a single one is larger. Within a file wide dtypes come
    first, so that every tensor is aligned to its element size.
    """
    groups: list[list[TensorOp]] = [[]]
    filled = 0
    for op in ops:
        if groups[-1] and filled + op.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(op)
        filled += op.nbytes
    placed: list[TensorOp] = []
    shards: list[Shard] = []
    for number, group in enumerate(groups):
        ordered = sorted(group, key=lambda op: -itemsize(op.dtype))
        header = build_header(
            [(op.name, op.dtype, op.shape, op.nbytes) for op in ordered], metadata if number == 0 else {"format": "pt"}
        )
        position = len(header)
        for op in ordered:
            placed.append(replace(op, shard=number, offset=position))
            position += op.nbytes
        name = "model.safetensors" if len(groups) == 1 else f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        shards.append(Shard(name, header[8:].decode(), position))
    return tuple(placed), tuple(shards)
