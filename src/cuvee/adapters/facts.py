"""What there is to know about an adapter before it is used, as plain data."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.tensors.dtypes import itemsize, name_of


@dataclass(frozen=True)
class ModuleGroup:
    """Modules of one name, over all layers: their number, layers, ranks, scalings and shapes of the update."""

    name: str
    count: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter in numbers.

    Attributes:
        name: what the user called it.
        identity: what it is, beyond doubt.
        kind: PEFT's name of the method, `DoRA` and `rank-stabilised` said beside it.
        base_model: the model that it was trained on, with its revision.
        parameters: numbers that it holds.
        size: their bytes.
        dtypes: what they are stored in.
        groups: its modules by name.
        whole: tensors that take the place of the base's.
        tokens: vocabulary rows that it replaces.

    """

    name: str
    identity: str
    kind: str
    base_model: str | None
    parameters: int
    size: int
    dtypes: tuple[str, ...]
    groups: tuple[ModuleGroup, ...]
    whole: tuple[tuple[str, tuple[int, ...]], ...]
    tokens: int


def facts_of(adapter: Adapter) -> AdapterFacts:
    """The facts of an opened adapter."""
    config = adapter.config
    groups: dict[str, list[AdapterModule]] = {}
    for path, module in adapter.modules.items():
        groups.setdefault(path.replace(".base_layer", "").rsplit(".", 1)[-1], []).append(module)
    sizes = [(math.prod(tensor.shape), itemsize(tensor.dtype)) for tensor in adapter.tensors]
    base = f"{config.base_model}@{config.revision}" if config.revision else config.base_model
    dora = any("lora_magnitude_vector" in module.parts for module in adapter.modules.values())
    notes = [note for note, holds in (("DoRA", dora), ("rank-stabilised", config.rslora)) if holds]
    return AdapterFacts(
        name=adapter.name,
        identity=adapter.identity,
        kind=" ".join([config.kind, *([f"({', '.join(notes)})"] if notes else [])]),
        base_model=base if config.base_model else None,
        parameters=sum(count for count, _ in sizes),
        size=sum(count * each for count, each in sizes),
        dtypes=tuple(name_of(code) for code, _ in Counter(t.dtype for t in adapter.tensors).most_common()),
        groups=tuple(_group(name, modules) for name, modules in groups.items()),
        whole=tuple((name, stored.shape) for name, stored in adapter.whole.items()),
        tokens=sum(
            module.parts["trainable_tokens_delta"].shape[0]
            for module in adapter.modules.values()
            if "trainable_tokens_delta" in module.parts
        ),
    )


def _group(name: str, modules: list[AdapterModule]) -> ModuleGroup:
    numbers = (re.search(r"\.(\d+)\.", f".{module.path}.") for module in modules)
    return ModuleGroup(
        name=name,
        count=len(modules),
        layers=tuple(sorted({int(match[1]) for match in numbers if match})),
        ranks=tuple(sorted({module.rank for module in modules if module.rank})),
        scalings=tuple(sorted({module.scaling for module in modules})),
        shapes=tuple(dict.fromkeys(_shape(module) for module in modules)),
    )


def _shape(module: AdapterModule) -> tuple[int, ...]:
    """The shape of the weight that B A is for, else that of the first part."""
    a, b = module.a, module.b
    if a is None or b is None:
        return next(iter(module.parts.values())).shape
    shape = (b.shape[0], *a.shape[1:])
    return shape[::-1] if module.is_embedding else shape
