"""Where an adapter's modules lie in a base model: by name, whatever wrapper the adapter was trained in.

A module's path in memory is usually that on disk. Where it is not, the two differ in how they begin (`model.` or not,
`language_model.model.` or `model.language_model.`) or in what a block of experts is called. The text and the vision
part of one model may each differ in a way of its own. What modules do is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cuvee.layout.configs import roles

# What transformers calls a module in memory, and what checkpoints of some families call it on disk.
_ALIASES = ((".mlp.experts", ".block_sparse_moe.experts"), (".mlp.gate", ".block_sparse_moe.gate"))
# Ways to begin that are looked for: a part of a model has one, and models have a few parts.
_MOST_REWRITINGS = 6
_SENSES = {"vision", "audio"}


class BaseNames:
    """The tensor and module names of a base model, to look paths up in.

    Args:
        tensors: the base's tensor names.
        paths: all paths of the adapter; what most of them begin with is learnt from them.

    """

    def __init__(self, tensors: Iterable[str], paths: Sequence[str]) -> None:
        self._known = {prefix for name in tensors for prefix in _prefixes(name)}
        self._rewritings: list[tuple[str, str]] = []
        self._learn(paths)

    def find(self, path: str) -> str | None:
        """The base's own name for a module or tensor that an adapter calls `path`; None if there is none."""
        spellings = [path, *(path.replace(memory, disk) for memory, disk in _ALIASES if memory in path)]
        rewritten = [
            add + spelling.removeprefix(strip)
            for strip, add in self._rewritings
            for spelling in spellings
            if spelling.startswith(strip) and _may_be(spelling, add + spelling.removeprefix(strip))
        ]
        return next((name for name in (*spellings, *rewritten) if name in self._known), None)

    def _learn(self, paths: Sequence[str]) -> None:
        """Finds (beginning, what stands in its place) for paths that are not found as they are, the most at a time."""
        lost = sorted((path for path in paths if self.find(path) is None), key=lambda path: -path.count("."))
        for _ in range(_MOST_REWRITINGS):
            best, most = ("", ""), 0
            for strip, add in self._candidates(lost[0]) if lost else ():
                found = sum(p.startswith(strip) and add + p.removeprefix(strip) in self._known for p in lost)
                if found > most:
                    best, most = (strip, add), found
            if most:
                self._rewritings.append(best)
            lost = [path for path in lost[0 if most else 1 :] if self.find(path) is None]

    def _candidates(self, path: str) -> Iterable[tuple[str, str]]:
        """Ways to make a path known by changing how it begins, the shortest beginnings first."""
        parts = path.split(".")
        for count in range(max(len(parts) - 1, 1)):
            ending = "." + ".".join(parts[count:])
            strip = "".join(part + "." for part in parts[:count])
            if ending[1:] in self._known and _may_be(path, ending[1:]):
                yield strip, ""
            alike = (name for name in self._known if name.endswith(ending) and _may_be(path, name))
            for name in sorted(alike):
                yield strip, name[: len(name) - len(ending) + 1]


def _may_be(path: str, name: str) -> bool:
    """Whether two names may be of one tensor: in the same layer, and both or neither in a part that sees or hears."""
    mine, theirs = ([part for part in each.split(".") if part.isdecimal()] for each in (path, name))
    common = min(len(mine), len(theirs))
    same_layer = not mine or (common > 0 and mine[-common:] == theirs[-common:])
    return same_layer and roles(path) & _SENSES == roles(name) & _SENSES


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))
