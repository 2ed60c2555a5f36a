"""Plans whose output is an adapter rather than a model, and small results read back.

An adapter's tensors lie in one file of a fixed name; what was measured on the way lies in files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cuvee.engine.execute import EngineSettings
from cuvee.engine.run import run
from cuvee.engine.workplace import Workplace
from cuvee.numerics.row_blocks import Array
from cuvee.planning.ops import Output, ParameterValue, Plan, PlannedModel, Shard, TensorOp
from cuvee.progress import Progress
from cuvee.tensors.dtypes import itemsize, numpy_dtype
from cuvee.tensors.header import build_header, read_header
from cuvee.tensors.sources import Source

WEIGHTS = "adapter_model.safetensors"
SPECTRA = "adapter_singular_values.safetensors"
CONFIG = "adapter_config.json"
MEASURED = "measured.safetensors"


@dataclass(frozen=True)
class Run:
    """What all plans of one command share.

    Attributes:
        place: where it works.
        fresh: whether to start over in any case.
        models: the inputs, as plans name them.
        seed: of what is drawn at random.
        settings: the engine's.
        locate: local path of every file that sources name.
        progress: is told of bytes and tensors.
        version: of Cuvee.
        recipe: what the plans were made from, if that is a text.
        workers: bytes that the worker processes of each plan that was run took together.

    """

    place: Workplace
    fresh: bool
    models: tuple[PlannedModel, ...]
    seed: int
    settings: EngineSettings
    locate: dict[str, Path]
    progress: Progress
    version: str
    recipe: str = ""
    workers: list[int] = field(default_factory=list)

    def execute(self, stage: str, method: str, ops: Sequence[TensorOp], files: Sequence[str], before: str = "") -> Path:
        """Runs ops whose outputs lie in `files` (`shard` tells which), as far as no earlier run has; their folder.

        With `before`, the name of a stage on the way, in a folder of its own.
        """
        place = self.place.before(before)
        plan = self.plan(method, ops, files)
        _, workers = run(
            plan, self.recipe, place, self.locate, self.settings, self.progress, fresh=self.fresh, stage=stage
        )
        self.workers.append(workers)
        return place.folder

    def plan(self, method: str, ops: Sequence[TensorOp], files: Sequence[str]) -> Plan:
        """The plan of ops whose outputs lie in `files`, with their places in them."""
        metadata = {
            "format": "pt",
            "cuvee.version": self.version,
            "cuvee.inputs": "\n".join(f"{model.identity} {model.fingerprint}" for model in self.models),
        }
        placed, shards = _placed(ops, files, metadata)
        last = len(self.models) - 1
        return Plan(self.models, last, placed, shards, self.seed, method, {}, (), (), (), (), self.version)


def derived(
    derivation: str,
    sources: Sequence[Source],
    outputs: Sequence[Output],
    parameters: Mapping[str, ParameterValue],
    models: Sequence[int] = (0, 1),
) -> TensorOp:
    """An op that derives `outputs` of `sources`, which belong to `models`, without places in files."""
    first = outputs[0]
    return TensorOp(
        name=first.name,
        shape=first.shape,
        dtype=first.dtype,
        shard=first.shard,
        offset=0,
        sources=tuple(sources),
        models=tuple(models)[: len(sources)],
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
