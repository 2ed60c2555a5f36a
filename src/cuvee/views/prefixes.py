"""Names that differ in what stands before them: `bert.encoder...` and `encoder...`, `model.visual...` and `visual...`.

Told from the names alone: stacks of layers that hold the same tensors are the same stack, and what their names differ
in is how all names around them differ. Shapes decide between stacks that are named alike. What tensors are made of is
not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cuvee.errors import PlanError
from cuvee.layout.names import place_of

Shapes = Mapping[str, tuple[int, ...] | None]
"""Name -> shape; None where it is not known."""


@dataclass(frozen=True)
class Pairing:
    """Which name of one side is which of the other.

    Attributes:
        names: theirs -> the base's.
        prefixes: (theirs, the base's) prefix, dots left off, that were found to stand for one another.

    """

    names: Mapping[str, str]
    prefixes: tuple[tuple[str, str], ...]

    def translate(self, name: str) -> str:
        """A name that the base does not have, with the prefix that the base would give it."""
        for theirs, base in sorted(self.prefixes, key=lambda pair: -len(pair[0])):
            if theirs and name.startswith(theirs + "."):
                return _under(base, name[len(theirs) + 1 :])
        return name


def pair_names(theirs: Shapes, wanted: Shapes) -> Pairing:
    """Theirs matched to those wanted: by name, by stack, by the prefixes that stacks show, and by what precedes them.

    Raises:
        PlanError: if a stack could be either of two.

    """
    names = {name: name for name in theirs if name in wanted}
    mine, base = _stacks(theirs), _stacks(wanted)
    stacks = tuple(_pair_stacks(mine, base))
    for stack, other in stacks:
        for place, (name, _) in mine[stack].items():
            if name not in names and place in base[other]:
                names[name] = base[other][place][0]
    prefixes = dict.fromkeys(_difference(stack, other) for stack, other in stacks if stack != other)
    taken = set(names.values())
    free = {name: shape for name, shape in wanted.items() if name not in taken and place_of(name).stack is None}
    for name, shape in theirs.items():
        if name not in names and place_of(name).stack is None and (found := _outside(name, shape, free, stacks)):
            names[name] = found
            del free[found]
            prefixes[_difference(name, found)] = None
    return Pairing(names, tuple(prefixes))


_Stack = dict[tuple[int, str], tuple[str, tuple[int, ...] | None]]
"""(Layer, name within the layer) -> (name, shape)."""


def _stacks(shapes: Shapes) -> dict[str, _Stack]:
    found: dict[str, _Stack] = {}
    for name, shape in shapes.items():
        place = place_of(name)
        if place.stack is not None:
            found.setdefault(place.stack, {})[place.layer, place.rest] = (name, shape)
    return found


def _pair_stacks(mine: Mapping[str, _Stack], base: Mapping[str, _Stack]) -> Iterator[tuple[str, str]]:
    """The stacks that hold the same tensors, those that fit best first; each stack once."""
    scores = sorted(
        (
            (score, stack, other)
            for stack in mine
            for other in base
            if (score := _likeness(stack, mine[stack], other, base[other]))
        ),
        key=lambda scored: scored[0],
        reverse=True,
    )
    taken: set[tuple[str, str]] = set()
    for score, stack, other in scores:
        if ("theirs", stack) in taken or ("base", other) in taken:
            continue
        rivals = [
            rival
            for rival in scores
            if rival[0] == score and (rival[1] == stack) != (rival[2] == other)
            and ("theirs", rival[1]) not in taken and ("base", rival[2]) not in taken
        ]  # fmt: skip
        if rivals:
            raise _ambiguity(f"{stack} could be {other}; and {rivals[0][1]} could be {rivals[0][2]}")
        taken |= {("theirs", stack), ("base", other)}
        yield stack, other


def _likeness(stack: str, mine: _Stack, other: str, base: _Stack) -> tuple[int, ...]:
    """How alike two stacks are; empty if they are not the same one."""
    common = mine.keys() & base.keys()
    if 2 * len(common) < min(len(mine), len(base)) or not common:
        return ()
    alike = sum(_fit(mine[place][1], base[place][1]) for place in common)
    return (stack == other, alike, len(common), len(_common_end(stack.split("."), other.split("."))))


def _outside(name: str, shape: tuple[int, ...] | None, free: Shapes, stacks: Sequence[tuple[str, str]]) -> str | None:
    """The free name that a tensor outside the layers has in the base; None if it has none.

    Two names are one if what they differ in stands before two stacks that are one, or one name is the other's end.
    """
    shown = {_difference(stack, its) for stack, its in stacks}
    ranked: dict[str, tuple[bool, bool, int]] = {}
    for other, wanted in free.items():
        if _fit(shape, wanted):
            theirs, base = _difference(name, other)
            before = any(_stands_before(theirs, stack) and _stands_before(base, its) for stack, its in stacks)
            if before or not theirs or not base:
                ranked[other] = ((theirs, base) in shown, before, -len(theirs))
    best = [other for other, rank in ranked.items() if rank == max(ranked.values())]
    if len(best) > 1:
        raise _ambiguity(f"{name} could be {' or '.join(best[:3])}")
    return best[0] if best else None


def _ambiguity(found: str) -> PlanError:
    return PlanError(
        "names can be matched in more than one way",
        found=found,
        fix="say which is which: `rename: {pattern: replacement}` beside the model in the recipe",
    )


def _stands_before(prefix: str, stack: str) -> bool:
    return not prefix or stack.startswith(prefix + ".")


def _fit(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> bool:
    return first is None or second is None or first == second


def _difference(name: str, other: str) -> tuple[str, str]:
    """What stands before the part that two names have in common at their ends."""
    first, second = name.split("."), other.split(".")
    end = len(_common_end(first, second))
    return ".".join(first[: len(first) - end]), ".".join(second[: len(second) - end])


def _common_end(first: list[str], second: list[str]) -> list[str]:
    count = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        count += 1
    return first[len(first) - count :]


def _under(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
