"""A model's config as a tree of parts: the model's own keys, and those of its text, vision and other parts.

Which key means what is `facts`' affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.layout.facts import NOT_PARTS, ROLES

Path = tuple[str, ...]


def parts(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The config and those of its parts (`text_config`, `thinker_config.text_config`), each with its path."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in NOT_PARTS and ("model_type" in value or key.endswith("_config")):
            yield from parts(value, (*path, key))


def roles(name: str) -> frozenset[str]:
    """What the words of a dotted name say of its part: `model.vision_tower.encoder` is of vision and an encoder."""
    words = name.lower().replace(".", "_").split("_")
    return frozenset(ROLES[word] for word in words if word in ROLES)


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the head is tied to the input embedding; transformers' default, which configs leave out, is that it is.

    The language part's own word counts before the whole model's only where the whole model says nothing.
    """
    said = [part["tie_word_embeddings"] for path, part in parts(config) if _speaks(path, part)]
    return bool(said[0]) if said else True


def _speaks(path: Path, part: Mapping[str, Any]) -> bool:
    return "tie_word_embeddings" in part and roles(".".join(path)) <= {"text"}
