"""A view of checkpoints that store what is tied twice: the copy is no tensor of its own.

Pickled checkpoints hold shared tensors under each of their names, and some safetensors files hold a tied head beside
its embedding. transformers writes neither, so the copies are left out, if they are what they seem: the same bytes in
the file, or equal values. What differs stays, and is merged like any other tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cuvee.layout.configs import ties_embeddings
from cuvee.layout.ties import copies_of_embedding, input_embedding
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import itemsize
from cuvee.tensors.location import Location
from cuvee.tensors.sources import Source, Stored

_STEP = 4 << 20
_SAMPLES, _SAMPLE = 8, 4096


def without_tied_copies(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without tensors that are stored copies of the embedding they are tied to."""
    embedding = input_embedding(checkpoint.tensors)
    if embedding is None or not ties_embeddings(checkpoint.config):
        return checkpoint
    value = checkpoint.tensors[embedding]
    copies = {
        name
        for name in copies_of_embedding(checkpoint.tensors, embedding)
        if same_values(checkpoint.tensors[name], value, checkpoint.location, checkpoint.weight_files)
    }
    if not copies:
        return checkpoint
    return replace(checkpoint, tensors={name: s for name, s in checkpoint.tensors.items() if name not in copies})


def same_values(first: Source, second: Source, location: Location, weight_files: Mapping[str, str]) -> bool:
    """Whether two tensors hold the same values, as far as it can be told by reading `weight_files` of `location`.

    A few places are read first, since tensors that differ do so early on. Only where those agree are whole files
    fetched from the Hub: the merge will need them.
    """
    if first == second:
        return True
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    if not (isinstance(first, Stored) and isinstance(second, Stored)):
        return False
    files = (weight_files.get(first.file), weight_files.get(second.file))
    if not all(files):
        return False

    def alike(start: int, stop: int) -> bool:
        parts = (
            location.read(file or "", stored.offset + start, stored.offset + stop)
            for file, stored in zip(files, (first, second), strict=True)
        )
        return next(parts) == next(parts)

    size = math.prod(first.shape) * itemsize(first.dtype)
    if not all(
        alike(start, min(start + _SAMPLE, size)) for start in (size * part // _SAMPLES for part in range(_SAMPLES))
    ):
        return False
    for file in files:
        location.fetch(file or "")
    return all(alike(start, min(start + _STEP, size)) for start in range(0, size, _STEP))
