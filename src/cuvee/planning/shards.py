"""Which output file each tensor goes to, and where in it; and the files' headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cuvee.layout.names import folder_of
from cuvee.planning.ops import Shard, TensorOp
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.header import build_header


def lay_out(
    ops: Sequence[TensorOp], max_shard_bytes: int, metadata: Mapping[str, str]
) -> tuple[tuple[TensorOp, ...], tuple[Shard, ...]]:
    """The ops with shard and offset, in file order, and the files, named the Hub's way.

    A file holds at most `max_shard_bytes` of tensors unless a single one is larger. Within a file wide dtypes come
    first, so that every tensor is aligned to its element size. Tensors of a module's folder (`2_Dense/linear.weight`)
    have one file in that folder.
    """
    folders: dict[str, list[TensorOp]] = {}
    groups: list[list[TensorOp]] = [[]]
    filled = 0
    for op in ops:
        if folder := folder_of(op.name):
            folders.setdefault(folder, []).append(op)
            continue
        if groups[-1] and filled + op.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(op)
        filled += op.nbytes
    names = [f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors" for number in range(len(groups))]
    files = list(zip(names if len(groups) > 1 else ["model.safetensors"], groups, strict=True))
    files += [(f"{folder}/model.safetensors", group) for folder, group in folders.items()]
    placed: list[TensorOp] = []
    shards: list[Shard] = []
    for number, (name, group) in enumerate(files):
        ordered = sorted(group, key=lambda op: -itemsize(op.dtype))
        inside = len(name.rpartition("/")[0]) + 1 if "/" in name else 0
        header = build_header(
            [(op.name[inside:], op.dtype, op.shape, op.nbytes) for op in ordered],
            metadata if number == 0 else {"format": "pt"},
        )
        position = len(header)
        for op in ordered:
            placed.append(replace(op, shard=number, offset=position))
            position += op.nbytes
        shards.append(Shard(name, header[8:].decode(), position))
    return tuple(placed), tuple(shards)
