"""Which tensor of each model stands behind an output tensor, and what happens where some models have none.

One rule for each case, so that nothing is lost in silence; every use of a rule is a `Decision` that plans show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cuvee.errors import PlanError
from cuvee.layout.configs import ties_embeddings
from cuvee.layout.names import is_counter, is_derived
from cuvee.layout.ties import (
    beside_head,
    input_embedding,
    is_head,
    lacks_head,
    missing_head,
    needs_head,
    tied_to,
)
from cuvee.planning.ops import Decision
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import is_float

_SHOWN = 3
_TIED = "the values of {} are those that this is tied to, where it is not stored"


@dataclass(frozen=True, slots=True)
class Match:
    """An output tensor, and the tensor behind it in each model.

    Attributes:
        name: its name in the output.
        inputs: for each model, the name of its tensor; None where it has none.
        copied: the model whose tensor is copied instead of merging; None to merge.

    """

    name: str
    inputs: tuple[str | None, ...]
    copied: int | None = None


@dataclass(frozen=True)
class Member:
    """One model of a group whose tensors are to be matched: output name -> the name of its own tensor."""

    checkpoint: Checkpoint
    names: Mapping[str, str]


@dataclass(frozen=True)
class Rules:
    """How to match, and what was decided so far.

    Attributes:
        missing: `error`, `base` or `skip`: what happens to tensors that only some models have.
        crimes: whether tensors whose shapes differ are the base's instead of an error.
        decided: rule -> the output tensors it was used for.

    """

    missing: str
    crimes: bool
    decided: dict[str, list[str]] = field(default_factory=dict)

    def decide(self, rule: str, name: str) -> None:
        """Remembers that `rule` was used for a tensor."""
        self.decided.setdefault(rule, []).append(name)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All that was decided, in order of first use."""
        return tuple(Decision(rule, tuple(names)) for rule, names in self.decided.items())


def matched(
    members: Sequence[Member], base: int, rules: Rules, refuse: Callable[[str, Sequence[Member]], PlanError]
) -> Iterator[Match]:
    """Every output tensor of a group of models, in the order of the base and then of the others.

    Args:
        members: the models.
        base: which of them decides where they disagree.
        rules: what to do with tensors that some models lack.
        refuse: makes the error for a tensor that may not be missing.

    Raises:
        PlanError: what `refuse` gives.

    """
    names = dict.fromkeys(name for i in _base_first(len(members), base) for name in members[i].names)
    for name in names:
        inputs = tuple(_counterpart(name, member, members) for member in members)
        match = _settled(Match(name, inputs), members, base, rules)
        if match is None and not rules.crimes and rules.missing == "error" and not _derived(name, members):
            raise refuse(name, members)
        if match is not None:
            yield match
    if (head := _required_head(members, base)) and head[0] not in names:
        rules.decide("the embedding's values: the config asks for a head that no model stores", head[0])
        yield Match(head[0], head[1])


def _base_first(count: int, base: int) -> list[int]:
    return [base, *(i for i in range(count) if i != base)]


def _counterpart(name: str, member: Member, members: Sequence[Member]) -> str | None:
    """The tensor that plays the part of `name` in a model: itself, or what it is tied to where it is not stored."""
    if name in member.names:
        return member.names[name]
    if is_head(name):
        return tied_to(member.checkpoint.tensors, name) if _has_head(name, member, members) else None
    return tied_to(member.checkpoint.tensors, name)  # whatever the config says of the head, there is nothing else to be


def _has_head(name: str, member: Member, members: Sequence[Member]) -> bool:
    """Whether a model has the head `name` although it does not store it.

    Its class may have none; where the config names no class, a head that is more than one matrix shows by the rest.
    """
    config = member.checkpoint.config
    if lacks_head(config) or not (ties_embeddings(config) or needs_head(config)):
        return False
    rest = beside_head((other for each in members for other in each.names), name)
    return not rest or any(other in member.names for other in rest)


def _settled(match: Match, members: Sequence[Member], base: int, rules: Rules) -> Match | None:
    """The match as the rules want it; None if the tensor is left out (or may not be missing)."""
    name = match.name
    if lacking := [m.checkpoint.name for m, own in zip(members, match.inputs, strict=True) if own is None]:
        if match.inputs[base] is not None and (rules.missing == "base" or _derived(name, members)):
            rules.decide(f"copied from {members[base].checkpoint.name}: absent from {', '.join(lacking)}", name)
            return Match(name, match.inputs, base)
        if rules.missing != "error" or _derived(name, members):
            rules.decide(f"left out: absent from {', '.join(lacking)}", name)
        return None
    if any(name not in member.names for member in members):
        tied = ", ".join(m.checkpoint.name for m in members if name not in m.names)
        what = "the embedding's values of {}, where the head is not stored" if is_head(name) else _TIED
        rules.decide(what.format(tied), name)
    if _derived(name, members) and len(members) > 1:
        rules.decide(f"copied from {members[base].checkpoint.name}: computed from the config, not learned", name)
        return Match(name, match.inputs, base)
    if rules.crimes and len({_shape(m, own) for m, own in zip(members, match.inputs, strict=True)}) > 1:
        rules.decide(f"copied from {members[base].checkpoint.name}: the shapes differ", name)
        return Match(name, match.inputs, base)
    return match


def _shape(member: Member, own: str | None) -> tuple[int, ...]:
    return member.checkpoint.tensors[own or ""].shape


def _derived(name: str, members: Sequence[Member]) -> bool:
    """Whether a tensor is computed by the model itself; integers that all models have must agree like any others."""
    held = [m.checkpoint.tensors[m.names[name]] for m in members if name in m.names]
    return is_derived(name, held[0].shape) and (
        is_counter(name) or len(held) < len(members) or all(is_float(s.dtype) for s in held)
    )


def _required_head(members: Sequence[Member], base: int) -> tuple[str, tuple[str | None, ...]] | None:
    """The head that the base's class and config ask for although it is stored under no name, and its embeddings."""
    stored = members[base].checkpoint
    if not needs_head(stored.config) or input_embedding(members[base].names) is None:
        return None
    shapes = {name: source.shape for name, source in stored.tensors.items()}
    head = missing_head(shapes, stored.config)
    names = [input_embedding(member.names) for member in members]
    if head is None or None in names:
        return None
    return head, tuple(member.names[name or ""] for member, name in zip(members, names, strict=True))


def differing(members: Sequence[Member], names: Iterable[str]) -> str:
    """Which models lack how many of some tensors, with examples."""
    names = list(dict.fromkeys(names))
    said = []
    for member in members:
        if missing := [name for name in names if _counterpart(name, member, members) is None]:
            examples = ", ".join(missing[:_SHOWN])
            said.append(f"{member.checkpoint.name} lacks {len(missing)} of {len(names)} ({examples})")
    return "; ".join(said)
