"""The `rename` of a model: patterns and replacements for its tensors' names, checked before a checkpoint is opened."""

from __future__ import annotations

import re
from typing import Any

from cuvee.recipe.fields import mapping
from cuvee.recipe.notes import Notes, shown
from cuvee.recipe.patterns import check_replacement
from cuvee.recipe.yaml_marks import Path

Rename = tuple[tuple[str, str], ...]
"""(Regular expression, replacement), in the order they are applied."""


def read_rename(data: Any, path: Path, notes: Notes) -> Rename:
    """The patterns and replacements that `data` holds; none for nothing.

    Raises:
        RecipeError: if it is not a mapping from text to text, or a pattern or replacement means nothing.

    """
    if data is None:
        return ()
    written = mapping(data, path, notes, what="rename", fix="write `rename: {pattern: replacement}`")
    found = []
    for pattern, replacement in written.items():
        here = (*path, pattern)
        if not isinstance(replacement, str):
            problem = f"the replacement of {shown(pattern)} must be text"
            raise notes.error(problem, here, found=shown(replacement), fix='quote it; "" removes what matches')
        try:
            check_replacement(re.compile(str(pattern)), replacement)
        except (re.error, IndexError, OverflowError) as error:
            what = f"rename {shown(pattern)} is not a regular expression and its replacement"
            fix = r"write `\.` for a dot, `(...)` for a group and `\1` for what it matched"
            raise notes.error(what, here, found=str(error), fix=fix) from None
        found.append((str(pattern), replacement))
    return tuple(found)
