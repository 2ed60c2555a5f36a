"""A checkpoint's tensors under the names, and in the layout, of the base's: what differs only in that is the same.

Prefixes (`bert.`, `model.language_model.`), spellings (transformers 4 and 5) and fusion (`qkv_proj`, experts stacked or
one by one) are matched here, in both directions. What is left over on either side keeps its name; what becomes of it is
the planner's affair. Recipes can rename by hand first: `views.renamed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from cuvee.errors import PlanError
from cuvee.layout.names import place_of
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.sources import Source
from cuvee.tensors.transposed import transposed
from cuvee.views.fused import Atom, atoms_of, cut, groups_of, join, marks_in, orders_of, turned_stacks, why_unknown
from cuvee.views.prefixes import Pairing, pair_names
from cuvee.views.spellings import SPLIT

Groups = tuple[str, int] | None
"""The module that holds queries, keys and values in groups of heads, and how many groups."""
_SHOWN = 4


def matched(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors named and put together as the base's are; itself if they are already.

    Raises:
        PlanError: if a fused tensor meets split ones and its inner order is not known, pieces do not make up a tensor,
            or a stack could be either of two.

    """
    turned = turned_stacks(_shapes(checkpoint.tensors)) ^ turned_stacks(_shapes(base.tensors))
    odd = {name: source for name, source in checkpoint.tensors.items() if name not in base.tensors or name in turned}
    wanted = {
        name: source.shape for name, source in base.tensors.items() if name not in checkpoint.tensors or name in turned
    }
    if not odd or not wanted:
        return checkpoint
    wanted |= _further_layers(wanted, base, odd)
    try:
        groups = groups_of(checkpoint.config), groups_of(base.config)
        found = _Matching(odd, wanted, kept=checkpoint.tensors.keys() - odd.keys(), groups=groups).run()
    except PlanError as error:
        raise error.at(f"{checkpoint.name}, matched to the names of {base.name}") from None
    if not found.built:
        return checkpoint
    kept = {name: source for name, source in checkpoint.tensors.items() if name in base.tensors and name not in odd}
    known = {**kept, **found.built}
    tensors = {**{name: known[name] for name in (*base.tensors, *wanted) if name in known}, **found.rest}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, _note(checkpoint, base, found)))


@dataclass(frozen=True)
class _Found:
    """Tensors under the base's names; what has no counterpart there; and how it was found."""

    built: Mapping[str, Source]
    rest: Mapping[str, Source]
    pairing: Pairing
    fused: int


class _Matching:
    """The matching of some tensors to the names and shapes wanted: at the level of atoms, where all layouts agree."""

    def __init__(
        self,
        odd: Mapping[str, Source],
        wanted: Mapping[str, tuple[int, ...]],
        *,
        kept: Set[str],
        groups: tuple[Groups, Groups] = (None, None),
    ) -> None:
        self.odd = odd
        self.wanted = wanted
        self.kept = kept
        marks = marks_in((*odd, *wanted))
        known = {each[0] for each in groups if each is not None}
        if any(all(any(f".{module}." in name for name in names) for names in (odd, wanted)) for module in known):
            groups = (None, None)  # fused on both sides
        self.atoms = _atoms(_shapes(odd), marks, groups[0])
        self.base_atoms = _atoms(wanted, marks, groups[1])
        self.mine = {atom.name: atom for atoms in self.atoms.values() for atom in atoms}
        self.base = {atom.name: atom for atoms in self.base_atoms.values() for atom in atoms}
        self.pairing = pair_names(
            {name: odd[atom.tensor].shape if atom.whole else None for name, atom in self.mine.items()},
            {name: wanted[atom.tensor] if atom.whole else None for name, atom in self.base.items()},
        )

    def run(self) -> _Found:
        """Everything that could be matched, built; the rest under names of its own."""
        mine_of = {theirs: mine for mine, theirs in self.pairing.names.items()}
        sizes = self._sizes()
        built: dict[str, Source] = {}
        used: set[str] = set()
        fused = 0
        for name, atoms in self.base_atoms.items():
            names = [mine_of.get(atom.name) for atom in atoms]
            if None in names:
                continue
            mine = [self.mine[each] for each in names if each is not None]
            built[name] = self._build(name, atoms, mine, sizes)
            used.update(atom.name for atom in mine)
            fused += not (atoms[0].whole and mine[0].whole)
        if built or self.kept:
            self._refuse_unknown_orders(built, used)
        return _Found(built, self._rest(used, built, sizes), self.pairing, fused)

    def _build(self, name: str, atoms: Sequence[Atom], mine: Sequence[Atom], sizes: Mapping[str, list[int]]) -> Source:
        """The tensor `name` of the base from the pieces that play its atoms."""
        shape, first = self.wanted[name], self.odd[mine[0].tensor]
        alike = [(a.index, a.count, a.expert) for a in atoms] == [(a.index, a.count, a.expert) for a in mine]
        if alike and len({atom.tensor for atom in mine}) == 1 and len(mine) == len(self.atoms[mine[0].tensor]):
            # Stored whole on both sides; a shape that differs is told by the planner.
            return first if atoms[0].turned == mine[0].turned else transposed(first)
        pieces = [cut(self.odd[atom.tensor], atom, sizes.get(atom.tensor)) for atom in mine]
        whole = join([piece for piece in pieces if piece is not None], atoms, shape) if None not in pieces else None
        if whole is None:
            held = ", ".join(
                f"{tensor} {list(self.odd[tensor].shape)}" for tensor in dict.fromkeys(a.tensor for a in mine)
            )
            raise PlanError(
                f"tensor {name!r} {list(shape)} is not what {held[:200]} would make",
                expected="pieces that lie one after another along the first axis",
                fix="merge checkpoints that store this tensor in the same way",
                tensor=name,
            )
        return whole

    def _sizes(self) -> dict[str, list[int]]:
        """The lengths of the pieces of fused tensors, told by the counterparts that are stored alone."""
        found: dict[str, dict[int, int]] = {}
        for mine, theirs in self.pairing.names.items():
            atom, other = self.mine[mine], self.base[theirs]
            if atom.count > 1 and other.whole:
                found.setdefault(atom.tensor, {})[atom.index] = self.wanted[other.tensor][0]
        counts = {atom.tensor: atom.count for atom in self.mine.values()}
        return {
            tensor: [lengths[index] for index in range(counts[tensor])]
            for tensor, lengths in found.items()
            if len(lengths) == counts[tensor]
        }

    def _rest(self, used: set[str], built: Mapping[str, Source], sizes: Mapping[str, list[int]]) -> dict[str, Source]:
        """What has no counterpart: whole tensors, or pieces where only some of a tensor's were used."""
        rest: dict[str, Source] = {}
        for name, source in self.odd.items():
            atoms = self.atoms[name]
            left = [atom for atom in atoms if atom.name not in used]
            if len(left) == len(atoms):
                translated = self.pairing.translate(name)
                # Its own name is free: no tensor of the base has it.
                free = not any(translated in names for names in (self.kept, built, rest, self.odd))
                rest[translated if free else name] = source
                continue
            for atom in left:
                piece = cut(source, atom, sizes.get(name))
                translated = self.pairing.translate(atom.name)
                if piece is None or any(translated in names for names in (self.kept, built, rest, self.odd)):
                    raise PlanError(
                        f"only a part of tensor {name!r} has counterparts in the base, and it cannot be told which",
                        fix="merge checkpoints that store this tensor in the same way",
                        tensor=name,
                    )
                rest[translated] = piece
        return rest

    def _refuse_unknown_orders(self, built: Mapping[str, Source], used: set[str]) -> None:
        """Fused tensors whose inner order is not known must not meet split ones unseen."""
        sides = (
            ([a.tensor for a in self.mine.values() if a.name not in used], [n for n in self.wanted if n not in built]),
            ([n for n in self.wanted if n not in built], [a.tensor for a in self.mine.values() if a.name not in used]),
        )
        for fused, split in sides:
            unknown = next((name for name in fused if why_unknown(name)), None)
            other = next((name for name in split if SPLIT.search(name)), None)
            if unknown and other:
                raise PlanError(
                    f"{unknown} cannot be matched to {other}: the order inside the fused tensor is not known",
                    found=why_unknown(unknown),
                    fix="convert one of the checkpoints so that both store these tensors in the same way",
                    tensor=unknown,
                )


def _shapes(tensors: Mapping[str, Source]) -> dict[str, tuple[int, ...]]:
    return {name: source.shape for name, source in tensors.items()}


def _atoms(shapes: Mapping[str, tuple[int, ...]], marks: frozenset[str], groups: Groups) -> dict[str, tuple[Atom, ...]]:
    """The atoms of each tensor; where two tensors would have an atom of one name, each stays whole under its own."""
    orders = orders_of(shapes, marks)
    found = {name: atoms_of(name, shape, marks, orders, groups) for name, shape in shapes.items()}
    counts = Counter(atom.name for atoms in found.values() for atom in atoms)
    return {
        name: atoms if all(counts[atom.name] == 1 for atom in atoms) else (Atom(name, name),)
        for name, atoms in found.items()
    }


def _further_layers(
    wanted: Mapping[str, tuple[int, ...]], base: Checkpoint, odd: Mapping[str, Source]
) -> dict[str, tuple[int, ...]]:
    """What the base would call, and how it would store, the tensors of layers that only the other checkpoint has."""
    numbers = {place.layer for place in map(place_of, odd) if place.stack is not None}
    held = {(place.stack, place.layer) for place in map(place_of, base.tensors)}
    templates = {(place.stack, place.rest): (place, wanted[name]) for name in wanted if (place := place_of(name)).stack}
    return {
        place.name(number): shape
        for place, shape in templates.values()
        for number in numbers
        if (place.stack, number) not in held
    }


def _note(checkpoint: Checkpoint, base: Checkpoint, found: _Found) -> str:
    pairs = [f"{_all_under(theirs)} as {_all_under(other)}" for theirs, other in found.pairing.prefixes]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    how = ", ".join(pairs[:_SHOWN]) + more if pairs else "spelled differently"
    fused = f"; {found.fused} of them joined from pieces or cut from fused ones" if found.fused else ""
    return f"{checkpoint.name}: {len(found.built)} tensors matched to the names of {base.name} ({how}){fused}"


def _all_under(prefix: str) -> str:
    return f"{prefix}.*" if prefix else "*"
