"""What an adapter holds of a fine-tune's change: which modules as factors, which whole, and under PEFT's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cuvee.errors import PlanError
from cuvee.lora.files import copied, derived
from cuvee.lora.in_memory import path_in_memory
from cuvee.lora.options import ExtractOptions
from cuvee.lora.pairs import STACKS, Pair, Pairs
from cuvee.lora.peft_config import PREFIX, AdapterPlan, factor_names
from cuvee.planning.ops import Output, ParameterValue, TensorOp
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.sources import Source


@dataclass(frozen=True)
class Design:
    """What the adapter will hold of the tensors that changed."""

    changed: tuple[Pair, ...]
    ranks: Mapping[str, int]
    pairs: Pairs
    checkpoints: tuple[Checkpoint, Checkpoint]
    options: ExtractOptions

    @property
    def factored(self) -> tuple[Pair, ...]:
        """Tensors held as factors."""
        return tuple(pair for pair in self.changed if self.ranks.get(pair.name, 0))

    @property
    def biases(self) -> tuple[Pair, ...]:
        """Changed biases of modules that are not saved whole."""
        return tuple(pair for pair in self.changed if pair.kind == "bias" and pair.module not in self.whole)

    @property
    def whole(self) -> tuple[str, ...]:
        """Modules saved whole, in order: PEFT takes all of a module or nothing."""
        return tuple(dict.fromkeys(p.module for p in self.changed if p.kind != "bias" and not p.decomposable))

    @property
    def tied(self) -> Pair | None:
        """The embedding whose change a tied head shares."""
        return self.pairs.tied_among((*self.factored, *(pair for pair in self.changed if pair.module in self.whole)))

    def path(self, module: str) -> str:
        """A module's path in the model that transformers builds."""
        return path_in_memory(module, self.checkpoints[0])

    def check(self) -> None:
        """Raises a PlanError if PEFT could not hold this: parameters of modules that have other modules inside."""
        factored = [pair.module for pair in self.factored]
        for pair in self.changed:
            inner = [module for module in factored if module.startswith(f"{pair.module}.") or not pair.module]
            if pair.module in self.whole and inner:
                raise PlanError(
                    f"{pair.name!r} changed, and an adapter cannot hold it beside factors of {inner[0]!r}",
                    expected="parameters of modules that have no other modules inside",
                    fix=f"leave it out with --skip-undecomposable or -e '{re.escape(pair.module)}$'",
                    tensor=pair.name,
                )

    def ops(self, totals: Mapping[str, float]) -> list[TensorOp]:
        """One op for each module that is decomposed, one for each tensor that is copied."""
        ops = [self._factors(pair, totals[pair.name]) for pair in self.factored]
        factored = {pair.module for pair in self.factored}
        for pair in self.biases:
            layer = ".base_layer" if pair.module in factored else ""
            ops.append(copied(f"{PREFIX}{self.path(pair.module)}{layer}.bias", pair.tuned, 0))
        for pair in (*self.pairs.taken, *self.pairs.left):
            if pair.module in self.whole:
                leaf = pair.name.rpartition(".")[2]
                ops.append(copied(f"{PREFIX}{self.path(pair.module)}.{leaf}", pair.tuned, 0))
        tied = self.tied
        if tied is not None and tied.module in self.whole:
            ops.append(copied(f"{PREFIX}{self.pairs.tied_head}.weight", tied.tuned, 0))
        return ops

    def _factors(self, pair: Pair, total: float) -> TensorOp:
        rank, code = self.ranks[pair.name], self.options.code
        fan_out, fan_in = pair.sides[::-1] if pair.transposed else pair.sides
        down, up = factor_names(self._holder(pair), embedding=pair.kind == "embedding")
        outputs = [
            Output(down, (pair.experts * rank, fan_in), code),
            Output(up, (fan_out, rank * pair.experts), code),
            Output(values_name(pair), (rank,), "F32", shard=1),
            Output(squares_name(pair), (2,), "F64", shard=1),
        ]
        head = pair is self.tied and self.pairs.tied_head
        if head:
            down, up = factor_names(head, embedding=False)
            outputs += [Output(down, (rank, fan_out), code), Output(up, (fan_in, rank), code)]
        parameters: dict[str, ParameterValue] = {
            "rank": rank,
            "total": total,
            "transposed": pair.transposed,
            "distribute": self.options.distribute_scale,
            "exact": self.options.exact,
            "dtype": code,
            "head": bool(head),
            **({"experts": pair.experts} if pair.kind == "experts" else {}),
        }
        return derived("low_rank", compared(pair), outputs, parameters)

    def _holder(self, pair: Pair) -> str:
        """The module that holds a tensor's factors: PEFT wraps the parameters of one module around each other."""
        path = self.path(pair.module)
        if pair.kind != "experts":
            return path
        place = STACKS.index(pair.name.rpartition(".")[2])
        held = {each.name for each in self.factored}
        return path + ".base_layer" * sum(f"{pair.module}.{name}" in held for name in STACKS[place + 1 :])

    def _key(self, pair: Pair) -> str:
        """What the adapter's config calls a tensor that is held as factors."""
        return self.path(pair.name if pair.kind == "experts" else pair.module)

    def config(self) -> AdapterPlan:
        """The adapter's settings."""
        model, base = self.checkpoints
        path, revision = _loadable(base)
        names = {self.path(pair.module) for pair in (*self.pairs.taken, *self.pairs.left)}
        ranks = {self._key(pair): self.ranks[pair.name] for pair in self.factored}
        whole = [self.path(module) for module in self.whole]
        tied = self.tied
        if tied is not None and self.pairs.tied_head is not None:
            head = self.pairs.tied_head
            names.add(head)
            if tied.module in self.whole:
                whole.append(head)
            else:
                ranks[head] = self.ranks[tied.name]
        return AdapterPlan(
            ranks=ranks,
            whole=whole,
            modules=names,
            base=path,
            revision=revision,
            biases=bool(self.biases),
            fan_in_fan_out=any(pair.transposed and pair.kind == "linear" for pair in self.factored),
            tied=tied is not None,
            architectures=model.config.get("architectures") or (),
            parameters=tuple(self._key(pair) for pair in self.factored if pair.kind == "experts"),
        )


def values_name(pair: Pair) -> str:
    """Under which name a tensor's singular values are written."""
    return f"{pair.name}.values"


def squares_name(pair: Pair) -> str:
    """Under which name the squared norms of a tensor's change, and of what its factors lack, are written."""
    return f"{pair.name}.squares"


def compared(pair: Pair) -> tuple[Source, Source]:
    """The fine-tune's and the base's tensor."""
    assert pair.base is not None  # noqa: S101 - only comparable pairs are decomposed
    return pair.tuned, pair.base


def _loadable(base: Checkpoint) -> tuple[str, str | None]:
    """The base as PEFT finds it again, a Hub id and its commit or the path as the user gave it."""
    repository, at, commit = base.identity.partition("@")
    if repository.startswith("hf://"):
        return repository.removeprefix("hf://"), commit if at else None
    return base.name, None
