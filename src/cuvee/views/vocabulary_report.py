"""Two models' vocabularies side by side: tokenizers, embeddings, special tokens and chat templates, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.errors import CheckpointError, VocabularyError
from cuvee.layout.vocabulary import vocabulary_size
from cuvee.options import MergeOptions
from cuvee.tensors.checkpoint import open_checkpoint
from cuvee.tensors.location import Location
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef
from cuvee.views.lifted import lifted
from cuvee.views.vocabulary_sizes import axes_of, rows_of
from cuvee.vocab.chat import template_of
from cuvee.vocab.compare import Comparison, compare_tokenizers
from cuvee.vocab.spelling import have_union
from cuvee.vocab.tokenizer import Tokenizer, read_tokenizer


@dataclass(frozen=True)
class VocabularyFacts:
    """One model's vocabulary.

    Attributes:
        name: what the user called it.
        kind: of its tokenizer.
        tokens: how many there are.
        added: how many of them are added ones.
        highest: the highest id.
        rows: of its embedding; None without weights.
        config_size: what config.json says; None if it says nothing.
        special: role (`eos_token`) -> token and its id.
        template: its chat template.

    """

    name: str
    kind: str
    tokens: int
    added: int
    highest: int
    rows: int | None
    config_size: int | None
    special: Mapping[str, tuple[str, int | None]]
    template: str | None


@dataclass(frozen=True)
class VocabularyReport:
    """Two vocabularies, how they differ, and whether tokens of one text mean the same in both."""

    first: VocabularyFacts
    second: VocabularyFacts
    comparison: Comparison
    has_union: bool = True


def compare_vocabularies(first: str, second: str, options: MergeOptions) -> VocabularyReport:
    """The vocabularies of two models, given as recipes do; a folder that holds a tokenizer alone will do.

    Raises:
        CuveeError: if one cannot be reached, or has no tokenizer.

    """
    facts: list[tuple[VocabularyFacts, Tokenizer]] = []
    cache = Path(options.transformers_cache).expanduser() if options.transformers_cache else None
    for name in (first, second):
        location = lifted(open_location(ModelRef.parse(name), cache))
        tokenizer = read_tokenizer(location, name)
        if tokenizer is None:
            raise VocabularyError(f"{name} has no tokenizer", expected="tokenizer.json, or files to make it from")
        facts.append((_facts(name, location, tokenizer), tokenizer))
    (ours, mine), (theirs, other) = facts
    return VocabularyReport(ours, theirs, compare_tokenizers(mine, other), have_union(mine, other))


def _facts(name: str, location: Location, tokenizer: Tokenizer) -> VocabularyFacts:
    rows, size = None, None
    try:
        checkpoint = open_checkpoint(location, name)
    except CheckpointError:  # a tokenizer without weights can be looked at too
        checkpoint = None
    if checkpoint is not None:
        axes = axes_of(checkpoint)
        rows = rows_of(checkpoint, axes) if axes else None
        size = vocabulary_size(checkpoint.config)
    return VocabularyFacts(
        name=name,
        kind=tokenizer.kind,
        tokens=len(tokenizer.ids),
        added=len(tokenizer.added),
        highest=tokenizer.size - 1,
        rows=rows,
        config_size=size,
        special=_special(tokenizer),
        template=template_of(location, tokenizer.files, tokenizer.settings),
    )


def _special(tokenizer: Tokenizer) -> dict[str, tuple[str, int | None]]:
    found: dict[str, tuple[str, int | None]] = {}
    for key, value in tokenizer.settings.items():
        token: Any = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(token, str):
            found[key] = (token, tokenizer.ids.get(token))
    return found
