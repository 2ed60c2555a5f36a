"""Where a model's vocabulary shows: which tensors have one row (or column) a token, and which config keys count them.

Tokenizers are not known here: the vocabulary's length is the number of rows of the input embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.layout.configs import Path, parts, roles
from cuvee.layout.facts import EMBEDDINGS, HEADS, VOCABULARY_BIASES, VOCABULARY_KEYS
from cuvee.layout.names import ends_with, place_of

Shapes = Mapping[str, tuple[int, ...]]


def vocabulary_axes(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, int]:
    """Tensor name -> the axis that has one entry a token, for every tensor that has one.

    Embeddings, heads and their biases are known by name. Any other tensor outside the layers counts too if exactly one
    of its axes has the vocabulary's length and no other number in the config is that length.

    Args:
        shapes: tensor name -> shape.
        config: the model's config.json; may be empty.

    """
    rows = vocabulary_rows(shapes, config)
    if rows is None:
        return {}
    distinct = sum(value == rows for value in _sizes(config)) == 0
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        if place_of(name).stack is not None or shape.count(rows) == 0:
            continue
        if ends_with(name, (*EMBEDDINGS, *HEADS)):
            found[name] = shape.index(rows)
        elif ends_with(name, VOCABULARY_BIASES) or (distinct and shape.count(rows) == 1 and not _of_other_part(name)):
            found[name] = len(shape) - 1 - shape[::-1].index(rows)
    return found


def vocabulary_rows(shapes: Shapes, config: Mapping[str, Any]) -> int | None:
    """The rows of the language part's input embedding; None if the model has none.

    Where several embeddings are of different lengths, the one that config.json calls the vocabulary's counts, else the
    longest.
    """
    lengths = [
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2 and ends_with(name, EMBEDDINGS) and place_of(name).stack is None and not _of_other_part(name)
    ]
    if not lengths:
        return None
    said = vocabulary_size(config)
    return said if said in lengths else max(lengths)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The vocabulary size that the config names for the model or its language part."""
    keys = vocabulary_size_keys(config)
    return next((part.get(keys[0][-1]) for path, part in parts(config) if path == keys[0][:-1]), None)


def vocabulary_size_keys(config: Mapping[str, Any]) -> tuple[Path, ...]:
    """Every path in the config that holds the vocabulary's size, the one to trust first.

    Parts that have a vocabulary of their own size (a text encoder beside a decoder) are left out. Where no part names
    it, the place where it would stand.
    """
    homes = [(path, part) for path, part in parts(config) if roles(".".join(path)) <= {"text"}]
    found = [((*path, key), part[key]) for path, part in homes for key in VOCABULARY_KEYS if key in part]
    if not found:
        return ((*homes[-1][0], VOCABULARY_KEYS[0]),)
    trusted = found[-1]  # the language part's, where the whole model repeats it
    return (trusted[0], *(path for path, value in found[:-1] if value == trusted[1]))


def _of_other_part(name: str) -> bool:
    return bool(roles(name) & {"vision", "audio"})


def _sizes(config: Mapping[str, Any]) -> Iterator[int]:
    """Every number of the config that is not the vocabulary's size."""
    for _, part in parts(config):
        for key, value in part.items():
            if isinstance(value, int) and not key.endswith(("_id", *VOCABULARY_KEYS)):
                yield value
