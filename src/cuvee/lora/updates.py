"""What an adapter updates by A and B: modules, and single parameters of modules such as stacked experts.

PEFT keeps the factors of a parameter under its module, and under `base_layer` where another parameter of the module
follows; which are whose it says nowhere. The config's names and the order in which PEFT wraps parameters tell. What the
base looks like is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.errors import PlanError
from cuvee.lora.pairs import STACKS
from cuvee.tensors.sources import Stored

_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_WRAPPED = ".base_layer"
WAY_OUT = "merge base+adapter models with `cuvee merge`, and extract an adapter from the result"


@dataclass(frozen=True)
class Update:
    """An adapter's update of one weight.

    Attributes:
        name: the module's path, or the parameter's: what the config's patterns speak of.
        module: the module's path.
        a: A `[experts * rank, in]`.
        b: B `[out, rank * experts]`.
        scaling: the factor before B A.
        experts: how many matrices lie in the weight.
        is_embedding: whether the factors are an embedding's.

    """

    name: str
    module: str
    a: Stored
    b: Stored
    scaling: float
    experts: int = 1
    is_embedding: bool = False

    @property
    def parameter(self) -> bool:
        """Whether it is of a parameter rather than of the module."""
        return self.name != self.module

    @property
    def rank(self) -> int:
        """Of each expert's B A."""
        return self.a.shape[0] // self.experts

    @property
    def sides(self) -> tuple[int, ...]:
        """Experts if there are several, outputs, and inputs with the kernel of a convolution."""
        stack = (self.experts,) if self.experts > 1 else ()
        return (*stack, self.b.shape[0], *self.b.shape[2:], *self.a.shape[1:])

    @property
    def weight(self) -> str:
        """The name of the tensor that it is of."""
        return self.name if self.parameter else f"{self.name}.weight"


def updates_of(adapter: Adapter) -> dict[str, Update]:
    """An adapter's updates by name, in its order.

    Raises:
        PlanError: if a module's update is more than A and B, or it cannot be told which parameter one is of.

    """
    blocks: dict[str, list[AdapterModule]] = {}
    for path, module in adapter.modules.items():
        blocks.setdefault(path.replace(_WRAPPED, ""), []).append(module)
    found = (update for path, modules in blocks.items() for update in _of_module(adapter, path, modules))
    return {update.name: update for update in found}


def _of_module(adapter: Adapter, path: str, modules: Sequence[AdapterModule]) -> Iterator[Update]:
    if not adapter.config.target_parameters or _is_target(path, adapter.config.raw.get("target_modules")):
        for module in modules:
            a, b = _factors(adapter, module)
            yield Update(module.path, module.path, a, b, module.scaling, is_embedding=module.is_embedding)
        return
    wrapped_last = sorted(modules, key=lambda module: -module.path.count(_WRAPPED))
    for leaf, module in zip(_parameters(adapter, path, len(modules)), wrapped_last, strict=True):
        name = f"{path}.{leaf}"
        a, b = _factors(adapter, module)
        rank = adapter.config.rank_of(name)
        if a.shape[0] % rank:
            raise PlanError(
                f"the rank of {name} in adapter {adapter.name} is not what its config says",
                expected=f"rank {rank} for each expert",
                found=f"A of shape {list(a.shape)}",
                fix="use the config that belongs to these weights: the scaling depends on it",
                tensor=name,
            )
        yield Update(name, path, a, b, adapter.config.scaling_of(name), a.shape[0] // rank)


def _parameters(adapter: Adapter, path: str, count: int) -> list[str]:
    """Which parameters of a module `count` updates are of, the one that PEFT wraps first before the others."""
    wanted = {name.rsplit(".", 1)[-1]: name for name in adapter.config.target_parameters}
    leaves = in_order(leaf for leaf, name in wanted.items() if f".{path}.{leaf}".endswith(f".{name}"))
    if leaves is None or len(leaves) != count:
        raise PlanError(
            f"it cannot be told which parameters of {path} the adapter {adapter.name} updates",
            expected=f"{count} parameters of it in target_parameters, or {' and '.join(STACKS)}",
            found=", ".join(adapter.config.target_parameters),
            fix=WAY_OUT,
            tensor=path,
        )
    return leaves


def in_order(leaves: Iterator[str] | Sequence[str]) -> list[str] | None:
    """A module's parameters as PEFT wraps them, in the order of the model's code; None if that is not known."""
    found = list(leaves)
    if len(found) > 1 and not set(found) <= set(STACKS):
        return None
    return sorted(found, key=STACKS.index) if len(found) > 1 else found


def holder_of(update: Update, leaves: Sequence[str]) -> str:
    """The path under which PEFT keeps an update's factors, if `leaves` are all parameters wrapped there, in order."""
    if not update.parameter:
        return update.name
    return update.module + _WRAPPED * (len(leaves) - 1 - leaves.index(update.name.rsplit(".", 1)[-1]))


def _is_target(path: str, targets: object) -> bool:
    """Whether `target_modules` names a module, as PEFT matches it."""
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, path) is not None
        except re.error:
            return False
    return isinstance(targets, list) and any(f".{path}".endswith(f".{each}") for each in targets)


def _factors(adapter: Adapter, module: AdapterModule) -> tuple[Stored, Stored]:
    """A and B, if the module's update is nothing else."""
    others = [part for part in module.parts if part not in _FACTORS]
    if others or module.a is None or module.b is None:
        raise PlanError(
            f"{adapter.name} holds more than A and B of {module.path}: {', '.join(others) or 'no factors'}",
            fix=WAY_OUT,
            tensor=module.path,
        )
    return module.a, module.b
