"""A checkpoint opened by its headers: which tensors lie where, and what else is beside them.

Nothing but headers, indexes and config is read. What tensors and configs mean is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from cuvee.errors import CheckpointError
from cuvee.tensors.header import name_fault, read_header
from cuvee.tensors.location import Location, some_of
from cuvee.tensors.sources import Source, Stored

_SAFE_INDEX = "model.safetensors.index.json"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
_MAX_INDEX_BYTES, _MAX_CONFIG_BYTES = 100_000_000, 16 << 20
_MAX_SIGNS = {b"[": 1 << 20, b"{": 1 << 20, b":": 1 << 21, b",": 1 << 22}  # more would take gigabytes once read
_MAX_DEPTH = 64
# Files with weights' endings that are not a model's weights.
_NOT_WEIGHTS = ("adapter_model", "training_args", "optimizer", "scheduler", "rng_state", "scaler", "consolidated")


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint.

    Attributes:
        name: what the user called it.
        location: where its files lie.
        tensors: name -> where its values come from, in the order of the files: stored pieces as opened; other sources
            once a view is put on.
        files: size in bytes of every file by relative name.
        weight_files: the files that hold `tensors`, by the name plans use (a URI) -> relative name.
        metadata: the safetensors metadata of the first shard.
        config_text: config.json as it is written, or None.
        notes: what the views put on so far have to tell.

    """

    name: str
    location: Location
    tensors: Mapping[str, Source]
    files: Mapping[str, int]
    weight_files: Mapping[str, str]
    metadata: Mapping[str, str]
    config_text: str | None
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What this checkpoint is, beyond doubt: an absolute path, or `hf://repository@commit`."""
        return self.location.identity

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, parsed; empty if there is none.

        Raises:
            CheckpointError: if it is not a JSON object, nests without end, or `architectures` is no list of names.

        """
        if self.config_text is None:
            return {}
        config = _json_object(self.config_text.encode(), "config.json", self.name)
        architectures = config.get("architectures")
        if architectures is not None and not (
            isinstance(architectures, list) and all(isinstance(kind, str) for kind in architectures)
        ):
            raise CheckpointError(
                f"config.json of {self.name} does not name its architectures",
                expected='a list of names, like ["LlamaForCausalLM"]',
                found=repr(architectures)[:80],
                fix="repair config.json or fetch it again",
                checkpoint=self.name,
                file="config.json",
            )
        return config


def open_checkpoint(location: Location, name: str, converted: Path | None = None) -> Checkpoint:
    """The checkpoint at `location`.

    Args:
        location: where the files lie.
        name: what to call it in messages.
        converted: a folder for state dicts that had to be rewritten before they can be read in ranges.

    Raises:
        CheckpointError: if there are no weights, or headers and indexes are not what they should be.

    """
    files = location.sizes()
    try:
        if safe := _safetensors_files(location, files, name):
            tensors, metadata = _read_headers(location, files, safe, name)
            _check_index(location, files, _SAFE_INDEX, {k: v.file for k, v in tensors.items()}, name)
            weights = {location.uri(file): file for file in safe}
        elif pickles := _pickle_files(location, files, name):
            tensors, metadata = _read_pickles(location, pickles, converted, name), {}
            weights = {stored.file: "" for stored in tensors.values()}
        else:
            raise CheckpointError(
                f"{name} holds no weights",
                expected="*.safetensors, or pytorch_model.bin",
                found=some_of(files),
                checkpoint=name,
            )
    except CheckpointError as error:
        raise error.at(f"checkpoint {name}", checkpoint=name) from error
    return Checkpoint(name, location, tensors, files, weights, metadata, _config_text(location, files, name))


def _config_text(location: Location, files: Mapping[str, int], name: str) -> str | None:
    if "config.json" not in files:
        return None
    if files["config.json"] > _MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"config.json of {name} is too large to be one",
            expected=f"at most {_MAX_CONFIG_BYTES >> 20} MiB",
            found=f"{files['config.json'] >> 20} MiB",
            checkpoint=name,
            file="config.json",
        )
    return location.read("config.json", 0, files["config.json"]).decode(errors="replace")


def _safetensors_files(location: Location, files: Mapping[str, int], name: str) -> list[str]:
    if _SAFE_INDEX in files:
        return _index_files(location, files, _SAFE_INDEX, name)
    if "model.safetensors" in files:
        return ["model.safetensors"]
    return [file for file in sorted(files) if file.endswith(".safetensors") and _may_be_weights(file)]


def _pickle_files(location: Location, files: Mapping[str, int], name: str) -> list[str]:
    if _PICKLE_INDEX in files:
        return _index_files(location, files, _PICKLE_INDEX, name)
    if "pytorch_model.bin" in files:
        return ["pytorch_model.bin"]
    return [file for file in sorted(files) if file.endswith(_PICKLE_SUFFIXES) and _may_be_weights(file)]


def _may_be_weights(file: str) -> bool:
    return "/" not in file and not file.startswith(_NOT_WEIGHTS)


def _index_files(location: Location, files: Mapping[str, int], index: str, name: str) -> list[str]:
    """The shards an index names, checked to lie inside the checkpoint and to be there."""
    shards = list(dict.fromkeys(_weight_map(location, files, index, name).values()))
    for shard in shards:
        path = PurePosixPath(shard)
        if not shard or path.is_absolute() or ".." in path.parts or "\\" in shard or ":" in shard or "\0" in shard:
            raise CheckpointError(
                f"{index} names a file outside the checkpoint: {shard!r}", checkpoint=name, file=shard
            )
    if missing := [shard for shard in shards if shard not in files]:
        raise CheckpointError(
            f"{len(missing)} of the {len(shards)} shards that {index} names are missing: {', '.join(missing[:5])}",
            fix="fetch the checkpoint again; the download did not finish",
            checkpoint=name,
            file=missing[0],
        )
    return shards


def _weight_map(location: Location, files: Mapping[str, int], index: str, name: str) -> dict[str, str]:
    if files[index] > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is too large", found=f"{files[index]} bytes", checkpoint=name, file=index)
    table = _json_object(location.read(index, 0, files[index]), index, name).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to files", checkpoint=name, file=index)
    return table


def _read_headers(
    location: Location, files: Mapping[str, int], shards: Iterable[str], name: str
) -> tuple[dict[str, Stored], Mapping[str, str]]:
    tensors: dict[str, Stored] = {}
    metadata: Mapping[str, str] | None = None
    for shard in shards:
        header = read_header(partial(location.read, shard), files[shard], shard)
        metadata = header.metadata if metadata is None else metadata
        uri = location.uri(shard)
        for key, entry in header.tensors.items():
            if key in tensors:
                other = tensors[key].file.rsplit("/", 1)[-1]
                raise CheckpointError(
                    f"tensor {key!r} is stored twice: in {other} and {shard}", checkpoint=name, tensor=key
                )
            tensors[key] = Stored(uri, entry.start, entry.dtype, entry.shape)
    return tensors, metadata or {}


def _check_index(
    location: Location, files: Mapping[str, int], index: str, stored_in: Mapping[str, str], name: str
) -> None:
    """An index must tell the truth: the same tensors, in the same files, as the shards' own headers."""
    if index not in files:
        return
    claimed = {key: location.uri(file) for key, file in _weight_map(location, files, index, name).items()}
    for key in claimed.keys() | stored_in.keys():
        if claimed.get(key) != stored_in.get(key):
            claim, fact = claimed.get(key), stored_in.get(key)
            raise CheckpointError(
                f"{index} does not tell the truth about tensor {key!r}",
                expected=f"in {claim.rsplit('/', 1)[-1]}" if claim else "absent (the index does not name it)",
                found=f"in {fact.rsplit('/', 1)[-1]}" if fact else "in none of the shards",
                fix="fetch the checkpoint again, or rebuild its index",
                checkpoint=name,
                tensor=key,
            )


def _read_pickles(location: Location, shards: Iterable[str], converted: Path | None, name: str) -> dict[str, Stored]:
    from cuvee.tensors.pickled import read_state_dict_layout

    tensors: dict[str, Stored] = {}
    for shard in shards:
        for key, stored in read_state_dict_layout(location.fetch(shard), converted).items():
            if fault := name_fault(key):
                what = f"the tensor name {key[:80]!r} in {shard} {fault}"
                raise CheckpointError(what, checkpoint=name, file=shard, tensor=key[:80])
            if key in tensors:
                raise CheckpointError(f"tensor {key!r} is stored in two files", checkpoint=name, tensor=key)
            tensors[key] = stored
    return tensors


def _json_object(raw: bytes, file: str, name: str) -> dict[str, Any]:
    if any(raw.count(sign) > most for sign, most in _MAX_SIGNS.items()):
        raise CheckpointError(f"{file} of {name} holds more values than it can need", checkpoint=name, file=file)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} of {name} is not JSON: {error}", checkpoint=name, file=file) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} of {name} is not a JSON object", checkpoint=name, file=file)
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise CheckpointError(f"{file} of {name} nests deeper than {_MAX_DEPTH} levels", checkpoint=name, file=file)
    return value
