"""A checkpoint under names that the recipe gives it: patterns replaced, nothing lost, nothing passed over."""

from __future__ import annotations

from dataclasses import replace

from cuvee.errors import PlanError
from cuvee.recipe.patterns import substituted
from cuvee.recipe.renames import Rename
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.sources import Source


def renamed(checkpoint: Checkpoint, rename: Rename) -> Checkpoint:
    """The checkpoint with each pattern, in order, replaced wherever it is found in a tensor's name.

    Raises:
        PlanError: if a pattern is found in no name or takes too long, or two tensors would have one name. Fact
            `pattern`.

    """
    if not rename:
        return checkpoint
    names = {name: name for name in checkpoint.tensors}
    for pattern, replacement in rename:
        changed = dict(zip(names, substituted(pattern, replacement, list(names.values())), strict=True))
        if not any(count for _, count in changed.values()):
            raise PlanError(
                f"rename {pattern!r} is found in no tensor name of {checkpoint.name}",
                found=", ".join(list(names.values())[:3]) + ", ...",
                fix="correct the pattern (a dot is written `\\.`), or remove it",
                pattern=pattern,
            )
        names = {name: now for name, (now, _) in changed.items()}
    tensors: dict[str, Source] = {}
    first: dict[str, str] = {}
    for old, new in names.items():
        if not new or new in tensors:
            raise PlanError(
                f"rename leaves {old!r} of {checkpoint.name} without a name"
                if not new
                else f"rename gives two tensors of {checkpoint.name} the name {new!r}",
                found=None if not new else f"{first[new]} and {old}",
                fix="make the patterns narrower",
                pattern=rename[-1][0],
                tensor=old,
            )
        tensors[new], first[new] = checkpoint.tensors[old], old
    count = sum(old != new for old, new in names.items())
    note = f"{checkpoint.name}: {count} tensors renamed by the recipe"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
