"""Which module of a recipe a tensor belongs to: by mergekit's names for modules, else by the names of stacks."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.layout.facts import MODULES


def owner(name: str, modules: Sequence[str]) -> str | None:
    """The recipe's module that a tensor belongs to: the one of the longest match, else the one that takes the rest.

    What a known module outside the recipe claims is no rest: a recipe that only names `text_decoder` says nothing of
    the vision tower.
    """
    best, length, rest = None, 0, None
    for module in dict.fromkeys((*modules, *MODULES)):
        parts = MODULES.get(module, (module + ".",))
        if parts is None:
            rest = module if module in modules else rest
            continue
        if module not in modules and (rest != "text_decoder" or module in _OF_SEQUENCE_MODELS):
            continue
        found = max((len(part) for part in parts if _holds(name, part)), default=0)
        if found > length:
            best, length = module, found
    return (best if best in modules else None) if best else rest


def _holds(name: str, part: str) -> bool:
    return name.startswith(part) or "." + part in name


_OF_SEQUENCE_MODELS = ("encoder", "decoder", "shared")
