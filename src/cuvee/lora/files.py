"""Plans whose output is an adapter rather than a model, and small results read back.

An adapter's tensors lie in one file of a fixed name; what was measured on the way lies in files of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cuvee.engine.execute import EngineSettings, execute
from cuvee.numerics.row_blocks import Array
from cuvee.planning.ops import Output, ParameterValue, Plan, PlannedModel, Shard, TensorOp
from cuvee.progress import Progress
from cuvee.tensors import disk
from cuvee.tensors.dtypes import itemsize, numpy_dtype
from cuvee.tensors.header import build_header, read_header
from cuvee.tensors.sources import Source

WEIGHTS = "adapter_model.safetensors"
SPECTRA = "adapter_singular_values.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Run:
    """What all plans of one command share.

    Attributes:
        models: the inputs, as plans name them.
        seed: of what is drawn at random.
        settings: the engine's.
        locate: local path of every file that sources name.
        progress: is told of bytes and tensors.
        version: of Cuvee.

    """

    models: tuple[PlannedModel, ...]
    seed: int
    settings: EngineSettings
    locate: dict[str, Path]
    progress: Progress
    version: str

    def execute(self, stage: str, method: str, ops: Sequence[TensorOp], folder: Path, files: Sequence[str]) -> Plan:
        """Runs ops whose outputs lie in `files` (`shard` tells which) and gives the plan of them."""
        plan = self.plan(method, ops, files)
        self.progress.begin(stage, sum(op.nbytes for op in plan.ops))
        execute(plan, folder, self.settings, self.locate, self.progress)
        self.progress.end()
        return plan

    def plan(self, method: str, ops: Sequence[TensorOp], files: Sequence[str]) -> Plan:
        """The plan of ops whose outputs lie in `files`, with their places in them."""
        metadata = {
            "format": "pt",
            "cuvee.version": self.version,
            "cuvee.inputs": "\n".join(f"{model.identity} {model.fingerprint}" for model in self.models),
        }
        placed, shards = _placed(ops, files, metadata)
        return Plan(self.models, len(self.models) - 1, placed, shards, self.seed, method, {}, (), (), (), self.version)


def derived(
    derivation: str,
    sources: Sequence[Source],
    outputs: Sequence[Output],
    parameters: Mapping[str, ParameterValue],
) -> TensorOp:
    """An op that derives `outputs` of `sources`, without places in files."""
    first = outputs[0]
    return TensorOp(
        name=first.name,
        shape=first.shape,
        dtype=first.dtype,
        shard=first.shard,
        offset=0,
        sources=tuple(sources),
        models=tuple(range(len(sources))),
        has_base=False,
        method=None,
        parameters=parameters,
        derivation=derivation,
        further=tuple(outputs[1:]),
    )


def copied(name: str, source: Source, model: int, dtype: str | None = None) -> TensorOp:
    """An op that writes a source's values as they are."""
    return TensorOp(
        name=name,
        shape=source.shape,
        dtype=dtype or source.dtype,
        shard=0,
        offset=0,
        sources=(source,),
        models=(model,),
        has_base=False,
        method=None,
        parameters={},
    )


def _placed(
    ops: Sequence[TensorOp], files: Sequence[str], metadata: Mapping[str, str]
) -> tuple[tuple[TensorOp, ...], tuple[Shard, ...]]:
    """Ops with offsets, and the files' headers; wide dtypes first, so that every tensor is aligned."""
    places: dict[tuple[int, str], int] = {}
    shards: list[Shard] = []
    for number, file in enumerate(files):
        mine = [output for op in ops for output in op.outputs if output.shard == number]
        ordered = sorted(mine, key=lambda output: -itemsize(output.dtype))
        header = build_header([(o.name, o.dtype, o.shape, o.nbytes) for o in ordered], metadata)
        position = len(header)
        for output in ordered:
            places[number, output.name] = position
            position += output.nbytes
        shards.append(Shard(file, header[8:].decode(), position))

    def with_places(op: TensorOp) -> TensorOp:
        further = tuple(replace(o, offset=places[o.shard, o.name]) for o in op.further)
        return replace(op, offset=places[op.shard, op.name], further=further)

    return tuple(map(with_places, ops)), tuple(shards)


def read_small(file: Path) -> dict[str, Array]:
    """Every tensor of a small safetensors file."""
    data = file.read_bytes()
    header = read_header(lambda start, stop: data[start:stop], len(data), file.name)
    return {
        name: np.frombuffer(data[entry.start : entry.stop], numpy_dtype(entry.dtype)).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }


@contextmanager
def scratch(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Gives new empty folders inside `folder`, by name, which are gone in the end."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(folder / name)
        disk.make_directory(made[-1])
        return made[-1]

    try:
        yield make
    finally:
        for path in made:
            disk.remove_tree(path)
