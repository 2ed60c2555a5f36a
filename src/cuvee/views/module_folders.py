"""A view of sentence-transformers folders: the weights of further modules are tensors too.

`modules.json` lists modules in numbered folders; those with weights of their own (`2_Dense/model.safetensors`) give
tensors called `2_Dense/linear.weight`, which the output writes to a file in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from cuvee.errors import CheckpointError
from cuvee.layout.names import folder_of
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.header import read_header
from cuvee.tensors.sources import Source, Stored

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def with_module_folders(checkpoint: Checkpoint, converted: Path | None = None) -> Checkpoint:
    """The checkpoint with the tensors of its modules' folders; itself if it has none.

    Args:
        checkpoint: as opened.
        converted: a folder for state dicts that had to be rewritten before they can be read in ranges.

    Raises:
        CheckpointError: if a module's file is not what it should be.

    """
    if "modules.json" not in checkpoint.files:
        return checkpoint
    tensors: dict[str, Source] = dict(checkpoint.tensors)
    files = dict(checkpoint.weight_files)
    for file in _files(checkpoint):
        folder = file.rpartition("/")[0]
        try:
            found = _stored(checkpoint, file, converted)
        except CheckpointError as error:
            raise error.at(f"checkpoint {checkpoint.name}", checkpoint=checkpoint.name) from error
        tensors |= {f"{folder}/{name}": stored for name, stored in found.items()}
        files |= {stored.file: "" if file.endswith(".bin") else file for stored in found.values()}
    return replace(checkpoint, tensors=tensors, weight_files=files)


def _files(checkpoint: Checkpoint) -> Iterator[str]:
    """One file of weights for each module folder that has any."""
    folders = dict.fromkeys(folder for name in checkpoint.files if (folder := folder_of(name)))
    for folder in folders:
        names = [f"{folder}/{name}" for name in _WEIGHTS if f"{folder}/{name}" in checkpoint.files]
        yield from names[:1]


def _stored(checkpoint: Checkpoint, file: str, converted: Path | None) -> dict[str, Stored]:
    location = checkpoint.location
    if file.endswith(".bin"):
        from cuvee.tensors.pickled import read_state_dict_layout

        return dict(read_state_dict_layout(location.fetch(file), converted))
    header = read_header(partial(location.read, file), checkpoint.files[file], file)
    uri = location.uri(file)
    return {name: Stored(uri, entry.start, entry.dtype, entry.shape) for name, entry in header.tensors.items()}
