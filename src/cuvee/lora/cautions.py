"""What an extracted adapter's user should know, because PEFT would not say it, or not clearly."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cuvee.layout.configs import parts, roles
from cuvee.lora.design import Design
from cuvee.lora.options import ExtractOptions
from cuvee.lora.pairs import Pairs, unmatched


def cautions(pairs: Pairs, options: ExtractOptions, design: Design) -> tuple[str, ...]:
    """What the user should know of the adapter."""
    return (*unmatched(pairs, options), *_renamed(design), *half_experts(pair.module for pair in design.factored))


def half_experts(modules: Iterable[str]) -> tuple[str, ...]:
    """A line if single experts have factors for one of the two matrices that PEFT joins, and none for the other."""
    experts: dict[str, set[str]] = {}
    for module in modules:
        if found := re.fullmatch(r"(.*\.experts\.\d+)\.(gate_proj|up_proj|w1|w3)", module):
            experts.setdefault(found[1], set()).add(found[2])
    half = [expert for expert, found in experts.items() if len(found) == 1]
    if not half:
        return ()
    (name,) = experts[half[0]]
    said = (
        f"of {half[0]} only {name} has factors ({len(half)} experts alike); PEFT joins it with its counterpart and "
        "does not apply one without the other; Cuvee does"
    )
    return (said,)


def _renamed(design: Design) -> tuple[str, ...]:
    """A line if PEFT may know the modules by other names than the files do, as those of models that see or hear."""
    model, base = design.checkpoints
    if any(design.path(pair.module) != pair.module for pair in design.changed):
        return ()
    if not any(roles(".".join(path)) & {"vision", "audio"} for path, _ in parts(model.config)):
        return ()
    said = (
        f"modules are called as the files of {base.name} call them; where transformers calls them otherwise in memory, "
        "PEFT warns of missing adapter keys and the adapter has no effect there; Cuvee reads it either way"
    )
    return (said,)
