"""What there is to say about a recipe while it is read: errors with their place, and warnings that wait until the end.

Warnings wait because an oddity (a misspelt key) is often the reason for an error found later (a missing weight), and
the error is clearer when it points at the oddity. This module knows places and wording, not what recipes contain.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cuvee.errors import RecipeError
from cuvee.recipe.yaml_marks import Marks, Path, path_text

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 70


def shown(value: Any) -> str:
    """`value` as a recipe would spell it, cut to what fits a line."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return _brief.repr(value)[:100]


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    import difflib

    by_spelling = {word.lower(): word for word in known}
    spelling = str(name)[:100].lower().replace("-", "_").replace(" ", "_")
    return next((by_spelling[near] for near in difflib.get_close_matches(spelling, by_spelling, n=1)), None)


@dataclass(frozen=True)
class Oddity:
    """Something in a recipe that has no effect where it stands."""

    path: Path
    what: str
    fix: str | None
    meant: str | None
    """The key or parameter that was probably meant."""


class Notes:
    """Collects oddities and places errors while one recipe is read."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.oddities: list[Oddity] = []

    def error(self, what: str, path: Path, **details: Any) -> RecipeError:
        """An error that says where in the recipe it was found."""
        return RecipeError(what, where=self.marks.where(path), **self._facts(path), **details)

    def placed(self, error: RecipeError, path: Path) -> RecipeError:
        """`error`, told that it happened at `path` (and below it, if it says where inside)."""
        whole = (*path, *error.facts.pop("inside", ()))
        return error.at(self.marks.where(whole), **self._facts(whole))

    def odd(self, what: str, path: Path, fix: str | None = None, *, meant: str | None = None) -> None:
        """Remembers an oddity."""
        self.oddities.append(Oddity(path, what, fix, meant))

    def warnings(self, *, strict: bool) -> tuple[str, ...]:
        """One line for every oddity, in the order of the file.

        Raises:
            RecipeError: for the first of them, if `strict`.
        """
        found = sorted(self.oddities, key=lambda oddity: self.marks.line(oddity.path) or 0)
        if strict and found:
            raise self.error(found[0].what, found[0].path, fix=found[0].fix)
        return tuple(
            f"{self.marks.where(oddity.path)}: {oddity.what}" + (f"; {oddity.fix}" if oddity.fix else "")
            for oddity in found
        )

    def _facts(self, path: Path) -> dict[str, Any]:
        return {"file": self.marks.file, "line": self.marks.line(path), "path": path_text(path)}
