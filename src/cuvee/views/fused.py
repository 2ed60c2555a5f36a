"""Fused tensors taken apart and put together: a layout's tensors as atoms, the finest pieces that any layout stores.

`qkv_proj` has three atoms, a stack of experts two or one for each expert, any other tensor one. Two layouts of the same
model have the same atoms; what atoms of one become in the other is an expression over stored tensors. Which checkpoints
meet, and how their prefixes differ, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.tensors.sources import Joined, Source, part_of, reshape
from cuvee.views.spellings import COMPILED, FUSED, STACKED, UNKNOWN_ORDER

_LEAF = re.compile(r"^(?P<stem>.*?)(?P<module>[A-Za-z0-9_]+?)(?P<dot>[._])(?P<kind>weight|bias)$")
_EXPERTS = re.compile(r"^(?P<stem>.*\.experts)\.(?P<module>[a-z_]+)$")
_UNKNOWN = {re.compile(pattern): reason for pattern, reason in UNKNOWN_ORDER.items()}


@dataclass(frozen=True, slots=True)
class Atom:
    """One piece of a tensor.

    Attributes:
        name: what it is called where it is stored alone, in the spelling that stands for all.
        tensor: the tensor it is a piece of, as its checkpoint names it.
        index: which piece it is.
        count: how many there are (for each expert).
        expert: which expert of a stack it belongs to; None outside stacks.
        equal: whether all pieces are as long.

    """

    name: str
    tensor: str
    index: int = 0
    count: int = 1
    expert: int | None = None
    equal: bool = True

    @property
    def whole(self) -> bool:
        """Whether it is all of its tensor."""
        return self.count == 1 and self.expert is None


def spelling(name: str) -> str:
    """The name in the spelling that stands for all."""
    for pattern, replacement in COMPILED:
        name = pattern.sub(replacement, name)
    return name


def atoms_of(tensor: str, shape: tuple[int, ...]) -> tuple[Atom, ...]:
    """The atoms of a tensor, in the order they lie in it."""
    name = spelling(tensor)
    if why_unknown(tensor):
        return (Atom(name, tensor),)
    stack = _EXPERTS.match(name)
    if stack and len(shape) == 3 and stack["module"] in STACKED:
        pieces = STACKED[stack["module"]]
        return tuple(
            Atom(f"{stack['stem']}.{expert}.{piece}.weight", tensor, index, len(pieces), expert)
            for expert in range(shape[0])
            for index, piece in enumerate(pieces)
        )
    leaf = _LEAF.match(name)
    if leaf and leaf["module"] in FUSED and (leaf["dot"] == "_") == (leaf["module"] == "in_proj"):
        pieces, equal = FUSED[leaf["module"]]
        return tuple(
            Atom(f"{leaf['stem']}{piece}.{leaf['kind']}", tensor, index, len(pieces), None, equal)
            for index, piece in enumerate(pieces)
        )
    return (Atom(name, tensor),)


def why_unknown(name: str) -> str | None:
    """Why a fused tensor cannot be taken apart; None if it is not such a tensor."""
    spelt = spelling(name)
    return next((reason for pattern, reason in _UNKNOWN.items() if pattern.search(spelt)), None)


def cut(source: Source, atom: Atom, sizes: Sequence[int] | None) -> Source | None:
    """The values of one atom of a tensor; None if it cannot be told where they are.

    Args:
        source: the tensor.
        atom: the piece wanted.
        sizes: lengths of the tensor's pieces along the first axis (the second of a stack), if they are known.

    """
    if atom.whole:
        return source
    if atom.expert is not None:
        source = part_of(source, 0, atom.expert, atom.expert + 1)
        source = reshape(source, source.shape[1:])
    length = source.shape[0]
    if atom.equal and length % atom.count == 0:
        sizes = [length // atom.count] * atom.count
    if sizes is None or sum(sizes) != length:
        return None
    begin = sum(sizes[: atom.index])
    return part_of(source, 0, begin, begin + sizes[atom.index])


def join(pieces: Sequence[Source], atoms: Sequence[Atom], shape: tuple[int, ...]) -> Source | None:
    """The tensor of `shape` that consists of `pieces`, in the order of its `atoms`; None if they do not make it up."""
    if atoms[0].whole:
        return pieces[0] if pieces[0].shape == shape else None
    if atoms[0].expert is None:
        whole: Source = Joined(tuple(pieces), 0)
        fits = all(piece.shape[1:] == shape[1:] for piece in pieces) and whole.shape == shape
        return whole if fits else None
    each = (shape[1] // atoms[0].count, *shape[2:])
    if any(piece.shape != each for piece in pieces):
        return None
    return reshape(Joined(tuple(pieces), 0), shape)
