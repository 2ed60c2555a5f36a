"""Fused tensors taken apart and put together: a layout's tensors as atoms, the finest pieces that any layout stores.

`qkv_proj` has three atoms, a stack of experts two or one for each expert, any other tensor one. Two layouts of the same
model have the same atoms; what atoms of one become in the other is an expression over stored tensors. Which checkpoints
meet, and how their prefixes differ, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cuvee.tensors.parts import part_of, reshape
from cuvee.tensors.sources import Joined, Source
from cuvee.tensors.transposed import transposed
from cuvee.views.spellings import FUSED, IN_GROUPS, MARKED, NUMBERED, QUERY_KEY_VALUE, SPELLINGS, STACKED, UNKNOWN_ORDER

_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in SPELLINGS)
_MARKED = {mark: tuple((re.compile(p), replacement) for p, replacement in rows) for mark, rows in MARKED.items()}
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
        turned: whether the stack holds each expert's matrix as [in, out].
        groups: into how many groups the tensor is divided, each of which holds a share of all pieces.

    """

    name: str
    tensor: str
    index: int = 0
    count: int = 1
    expert: int | None = None
    equal: bool = True
    turned: bool = False
    groups: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is all of its tensor."""
        return self.count == 1 and self.expert is None


def marks_in(names: Iterable[str]) -> frozenset[str]:
    """The marks in some names that call for spellings of their own: those of two checkpoints, to compare them."""
    return frozenset(mark for mark in MARKED if any(mark in name for name in names))


def spelling(name: str, marks: frozenset[str] = frozenset()) -> str:
    """The name in the spelling that stands for all."""
    for numbered, named in NUMBERED.items():
        if numbered in name:
            name = name.replace(numbered, named)
    parts = name.split(".")
    template = ".".join("0" if part.isdecimal() else part for part in parts)
    spelt = _spelling_of(template, marks)
    if spelt == template:
        return name
    numbers = iter([part for part in parts if part.isdecimal()])  # no spelling adds or drops a number
    return ".".join(next(numbers) if part.isdecimal() else part for part in spelt.split("."))


def orders_of(shapes: Mapping[str, tuple[int, ...]], marks: frozenset[str] = frozenset()) -> dict[str, str]:
    """Module of experts, as spelt -> how its stacks hold them, where not as [experts, out, in] and half after half.

    `turned`: [experts, in, out], told by the two stacks' shapes; `alternating`: gates and ups alternate (gpt-oss, whose
    stacks have biases).
    """
    stacks = {
        spelling(name, marks): shape
        for name, shape in shapes.items()
        if len(shape) == 3 or name.endswith("gate_up_proj_bias")
    }
    found = {}
    for name, shape in stacks.items():
        above, _, last = name.rpartition(".")
        down = stacks.get(f"{above}.down_proj", ())
        if last != "gate_up_proj" or not above.endswith(".experts") or len(down) != 3:
            continue
        if f"{above}.gate_up_proj_bias" in stacks:
            found[above] = "alternating"
        elif shape[1:] == (down[2], 2 * down[1]):
            found[above] = "turned"
    return found


def turned_stacks(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The stacks of experts that hold each matrix as [in, out]."""
    orders = orders_of(shapes)
    stacks = (name for name, shape in shapes.items() if orders and len(shape) == 3)
    return frozenset(name for name in stacks if orders.get(spelling(name).rpartition(".")[0]) == "turned")


def groups_of(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The module that holds queries, keys and values in groups of heads, and how many groups; None if none does."""
    module, keys = IN_GROUPS.get(str(config.get("model_type")), ("", ()))
    counts = [count for key in keys if isinstance(count := config.get(key), int) and count > 0]
    return (module, counts[0]) if counts else None


def atoms_of(
    tensor: str,
    shape: tuple[int, ...],
    marks: frozenset[str] = frozenset(),
    orders: Mapping[str, str] | None = None,
    groups: tuple[str, int] | None = None,
) -> tuple[Atom, ...]:
    """The atoms of a tensor, in the order they lie in it."""
    name = spelling(tensor, marks)
    above, _, last = name.rpartition(".")
    order = (orders or {}).get(above)
    stem, dot, module = above.rpartition(".")
    if groups is not None and module == groups[0] and shape[0] % groups[1] == 0:
        return tuple(
            Atom(f"{stem}{dot}{piece}.{last}", tensor, index, len(QUERY_KEY_VALUE), equal=False, groups=groups[1])
            for index, piece in enumerate(QUERY_KEY_VALUE)
        )
    if why_unknown(tensor) or order == "alternating":
        return (Atom(name, tensor),)
    if above.endswith(".experts") and len(shape) == 3 and last in STACKED:
        return tuple(
            Atom(
                f"{above}.{expert}.{piece}.weight", tensor, index, len(STACKED[last]), expert, turned=order == "turned"
            )
            for expert in range(shape[0])
            for index, piece in enumerate(STACKED[last])
        )
    if last in ("in_proj_weight", "in_proj_bias"):  # as torch's MultiheadAttention names them
        above, last = f"{above}.in_proj" if above else "in_proj", last.removeprefix("in_proj_")
    elif above.endswith("in_proj"):
        return (Atom(name, tensor),)
    stem, dot, module = above.rpartition(".")
    if module in FUSED and last in ("weight", "bias"):
        pieces, equal = FUSED[module]
        return tuple(
            Atom(f"{stem}{dot}{piece}.{last}", tensor, index, len(pieces), None, equal)
            for index, piece in enumerate(pieces)
        )
    return (Atom(name, tensor),)


def why_unknown(name: str) -> str | None:
    """Why a fused tensor cannot be taken apart; None if it is not such a tensor."""
    return _why_unknown(".".join("0" if part.isdecimal() else part for part in name.split(".")))


@lru_cache(maxsize=4096)
def _spelling_of(template: str, marks: frozenset[str]) -> str:
    """The spelling of a name whose numbers are all 0: a model has many layers, and few different names in them."""
    own = (row for mark, rows in _MARKED.items() if mark in marks for row in rows)
    for pattern, replacement in (*own, *_COMPILED):
        template = pattern.sub(replacement, template)
    return template


@lru_cache(maxsize=4096)
def _why_unknown(template: str) -> str | None:
    spelt = _spelling_of(template, frozenset())
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
        source = transposed(source) if atom.turned else source
    length = source.shape[0]
    if atom.equal and length % atom.count == 0:
        sizes = [length // atom.count] * atom.count
    if sizes is None or sum(sizes) != length:
        return None
    begin, size = sum(sizes[: atom.index]), sizes[atom.index]
    if atom.groups == 1:
        return part_of(source, 0, begin, begin + size)
    if any(each % atom.groups for each in sizes):
        return None
    grouped = reshape(source, (atom.groups, length // atom.groups, *source.shape[1:]))
    part = part_of(grouped, 1, begin // atom.groups, (begin + size) // atom.groups)
    return reshape(part, (size, *source.shape[1:]))


def join(pieces: Sequence[Source], atoms: Sequence[Atom], shape: tuple[int, ...]) -> Source | None:
    """The tensor of `shape` that consists of `pieces`, in the order of its `atoms`; None if they do not make it up."""
    if atoms[0].whole:
        return pieces[0] if pieces[0].shape == shape else None
    if atoms[0].expert is None:
        groups = atoms[0].groups
        if any(len(piece.shape) != len(shape) or piece.shape[0] % groups for piece in pieces):
            return None
        if groups > 1:
            shares = [reshape(piece, (groups, piece.shape[0] // groups, *piece.shape[1:])) for piece in pieces]
            joined = Joined(tuple(shares), 1)
            fits = all(piece.shape[1:] == shape[1:] for piece in pieces) and groups * joined.shape[1] == shape[0]
            return reshape(joined, shape) if fits else None
        whole: Source = Joined(tuple(pieces), 0)
        fits = all(piece.shape[1:] == shape[1:] for piece in pieces) and whole.shape == shape
        return whole if fits else None
    count, turned = atoms[0].count, atoms[0].turned
    length, width = (shape[2], shape[1]) if turned else (shape[1], shape[2])
    if any(piece.shape != (length // count, width) for piece in pieces):
        return None
    if turned:
        experts = [
            pieces[i] if count == 1 else Joined(tuple(pieces[i : i + count]), 0) for i in range(0, len(pieces), count)
        ]
        pieces = [transposed(expert) for expert in experts]
    return reshape(Joined(tuple(pieces), 0), shape)
