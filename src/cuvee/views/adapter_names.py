"""Where an adapter's modules lie in a base model: by name, whatever wrapper the adapter was trained in.

A module's path in memory is usually that on disk. Where it is not, the two differ in how they begin (`model.` or not,
`language_model.model.` or `model.language_model.`) or in what a block of experts is called. What modules do is not
known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# What transformers calls a module in memory, and what checkpoints of some families call it on disk.
_ALIASES = ((".mlp.experts", ".block_sparse_moe.experts"), (".mlp.gate", ".block_sparse_moe.gate"))


class BaseNames:
    """The tensor and module names of a base model, to look paths up in.

    Args:
        tensors: the base's tensor names.
        paths: all paths of the adapter; what most of them begin with is learnt from them.

    """

    def __init__(self, tensors: Iterable[str], paths: Sequence[str]) -> None:
        self._known = {prefix for name in tensors for prefix in _prefixes(name)}
        self._rewriting = self._learn(paths)

    def find(self, path: str) -> str | None:
        """The base's own name for a module or tensor that an adapter calls `path`; None if there is none."""
        strip, add = self._rewriting
        spellings = [path, *(path.replace(memory, disk) for memory, disk in _ALIASES if memory in path)]
        rewritten = [add + spelling.removeprefix(strip) for spelling in spellings if spelling.startswith(strip)]
        return next((name for name in (*spellings, *rewritten) if name in self._known), None)

    def _learn(self, paths: Sequence[str]) -> tuple[str, str]:
        """(beginning, what stands in its place) that finds the most of those paths that are not found as they are."""
        lost = [path for path in paths if path not in self._known]
        best, most = ("", ""), 0
        for path in sorted(lost, key=lambda path: -path.count("."))[:1]:
            for strip, add in self._candidates(path):
                found = sum(p.startswith(strip) and add + p.removeprefix(strip) in self._known for p in lost)
                if found > most:
                    best, most = (strip, add), found
        return best

    def _candidates(self, path: str) -> Iterable[tuple[str, str]]:
        """Ways to make a path known by changing how it begins, the shortest beginnings first."""
        parts = path.split(".")
        for count in range(len(parts) - 1):
            ending = "." + ".".join(parts[count:])
            strip = "".join(part + "." for part in parts[:count])
            if ending[1:] in self._known:
                yield strip, ""
            for name in sorted(name for name in self._known if name.endswith(ending)):
                yield strip, name[: len(name) - len(ending) + 1]


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))
