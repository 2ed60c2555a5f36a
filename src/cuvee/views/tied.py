"""A view of checkpoints that store what is tied twice: the copy is no tensor of its own.

Pickled checkpoints hold shared tensors under each of their names, and some safetensors files hold a tied head beside
its embedding. transformers writes neither, so the copies are left out, if they are what they seem: the same bytes in
the file, or equal values. What differs stays, and is merged like any other tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from cuvee.layout.configs import ties_embeddings
from cuvee.layout.ties import copies_of_embedding, input_embedding
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.sources import Source, Stored

_STEP = 4 << 20


def without_tied_copies(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without tensors that are stored copies of the embedding they are tied to."""
    embedding = input_embedding(checkpoint.tensors)
    if embedding is None or not ties_embeddings(checkpoint.config):
        return checkpoint
    value = checkpoint.tensors[embedding]
    copies = {
        name
        for name in copies_of_embedding(checkpoint.tensors, embedding)
        if _equal(checkpoint.tensors[name], value, checkpoint)
    }
    if not copies:
        return checkpoint
    return replace(checkpoint, tensors={name: s for name, s in checkpoint.tensors.items() if name not in copies})


def _equal(first: Source, second: Source, checkpoint: Checkpoint) -> bool:
    """Whether two tensors hold the same values; False where that cannot be told without a download."""
    if first == second:
        return True
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    if not (isinstance(first, Stored) and isinstance(second, Stored)):
        return False
    files = (checkpoint.weight_files.get(first.file), checkpoint.weight_files.get(second.file))
    if not all(files) or checkpoint.identity.startswith("hf://"):
        return False
    return all(
        checkpoint.location.read(files[0] or "", first.offset + start, first.offset + stop)
        == checkpoint.location.read(files[1] or "", second.offset + start, second.offset + stop)
        for start, stop in _spans(first)
    )


def _spans(stored: Stored) -> Iterator[tuple[int, int]]:
    """Byte ranges that cover a tensor: a few from all over it first, since tensors that differ do so early on."""
    size = math.prod(stored.shape) * itemsize(stored.dtype)
    for part in range(8):
        start = size * part // 8
        yield start, min(start + 4096, size)
    for start in range(0, size, _STEP):
        yield start, min(start + _STEP, size)
