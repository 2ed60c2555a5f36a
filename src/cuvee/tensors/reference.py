"""A model reference: which checkpoint is meant. Pure text; nothing is opened here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

WITH_ADAPTER = " +adapter "
"""Between the identities of a model and of what is on it."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]{0,94}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class ModelRef:
    """`path_or_hub_id[@revision][+adapter[@revision]]...`, taken apart.

    `adapters` are references of their own, in the order in which they are applied.
    """

    path: str
    revision: str | None = None
    adapters: tuple[ModelRef, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """The reference that `text` spells."""
        first, *rest = text.strip().split("+")
        model = cls._parse_one(first)
        return replace(model, adapters=tuple(map(cls._parse_one, rest)))

    @classmethod
    def _parse_one(cls, text: str) -> ModelRef:
        path, at, revision = text.partition("@")
        return cls(path, revision if at else None)

    def __str__(self) -> str:
        own = f"{self.path}@{self.revision}" if self.revision else self.path
        return "+".join([own, *map(str, self.adapters)])


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` is spelled as the Hub spells repositories: `name` or `organisation/name`."""
    parts = text.split("/")
    return (
        len(parts) <= 2
        and all(_NAME.fullmatch(part) for part in parts)
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )
