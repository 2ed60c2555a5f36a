"""Merges without tokenizer settings: what is said about vocabularies that differ, and embeddings cut to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cuvee.errors import VocabularyError
from cuvee.layout.vocabulary import vocabulary_axes
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.tensors.rowmaps import encode_map
from cuvee.tensors.rows import Rows
from cuvee.vocab.listed import Listed, compare_lists, listed_tokens
from cuvee.vocab.output import OutputVocabulary, unchanged
from cuvee.vocab.tokenizer import ADDED, FAST, SLOW, Tokenizer, read_tokenizer

Checkpoints = Mapping[ModelRef, Checkpoint]


def axes_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The checkpoint's vocabulary tensors, each with the axis that rows lie along."""
    return vocabulary_axes({name: s.shape for name, s in checkpoint.tensors.items()}, checkpoint.config)


def rows_of(checkpoint: Checkpoint, axes: Mapping[str, int]) -> int:
    """The rows that all vocabulary tensors of a checkpoint have."""
    return min(checkpoint.tensors[name].shape[axis] for name, axis in axes.items())


def truncated(checkpoints: Checkpoints, *, first: ModelRef) -> tuple[Checkpoints, OutputVocabulary, tuple[str, ...]]:
    """The checkpoints with embeddings and heads cut to the length of the shortest, and what to say about it."""
    axes = {ref: found for ref, checkpoint in checkpoints.items() if (found := axes_of(checkpoint))}
    lengths = {ref: rows_of(checkpoints[ref], found) for ref, found in axes.items()}
    if len(set(lengths.values())) <= 1:
        return checkpoints, OutputVocabulary(), content_warnings(checkpoints)
    rows = min(lengths.values())
    whole = encode_map(np.arange(rows, dtype=np.int32))
    views = dict(checkpoints)
    for ref, found in axes.items():
        checkpoint = checkpoints[ref]
        cut = {name: Rows((checkpoint.tensors[name],), (whole,), rows, axis) for name, axis in found.items()}
        views[ref] = replace(checkpoint, tensors={**checkpoint.tensors, **cut}) if lengths[ref] > rows else checkpoint
    cut_models = ", ".join(f"{checkpoints[ref].name} ({n})" for ref, n in lengths.items() if n > rows)
    warnings = [f"embeddings were cut to {rows} rows, whatever their tokens mean: {cut_models}"]
    tokenizer = _to_cut(checkpoints[first], rows, warnings)
    output = unchanged(tokenizer, rows) if tokenizer else None
    if output and output.dropped:
        warnings.append(f"{len(output.dropped)} tokens of {output.start.name} were left out with their rows")
    old = tokenizer.ids if tokenizer and output and output.dropped else None
    return views, OutputVocabulary(output.finished() if output else None, rows, base_ids=old), tuple(warnings)


def _to_cut(checkpoint: Checkpoint, rows: int, said: list[str]) -> Tokenizer | None:
    """The tokenizer that tokens beyond `rows` are taken out of; None if there are none, or none can be told.

    One without a tokenizer.json is worth its conversion only if its files list such tokens.
    """
    if FAST not in checkpoint.files:
        listed = listed_tokens(checkpoint.location, checkpoint.files)
        if listed is None or max(listed.ids.values(), default=-1) < rows:
            return None
    try:
        return read_tokenizer(checkpoint.location, checkpoint.name, checkpoint.files)
    except VocabularyError as error:
        said.append(f"{error.what}; the files of {checkpoint.name}'s tokenizer go along as they are, with any tokens "
                    f"beyond {rows}, for which there are no rows")  # fmt: skip
        return None


def content_warnings(checkpoints: Checkpoints) -> tuple[str, ...]:
    """A line for each model with as many rows as the first but other tokens."""
    models = [(c, rows_of(c, axes)) for c in checkpoints.values() if (axes := axes_of(c))]
    if len(models) < 2:
        return ()
    (first, rows), *others = models
    said: list[str] = []
    differing = [other for other, length in others if length == rows and not _same_tokens(first, other)]
    ours = listed_in(first, said) if differing else None
    for other in differing:
        theirs = listed_in(other, said)
        found = compare_lists(ours, theirs) if ours and theirs else None
        if found and not found.equal:
            count = len(found.moved) + max(len(found.only_first), len(found.only_second))
            said.append(
                f"the vocabularies of {first.name} and {other.name} are of one size but differ in {count} tokens: "
                f"{found.words(first.name, other.name)}; rows are merged by number, which is wrong for these tokens; "
                "`tokenizer: {source: base}` or `{source: union}` merges them by token"
            )
        elif found is None and (files := _differing(first, other)):
            said.append(
                f"{files} of {first.name} and {other.name} differ, and cannot be compared; "
                "rows are merged by number; `tokenizer: {source: base}` merges them by token"
            )
    return tuple(said)


def sizes_differ(tensor: str, checkpoints: Sequence[Checkpoint], shapes: Sequence[tuple[int, ...]]) -> VocabularyError:
    """The refusal of vocabulary tensors of different lengths, saying which tokens differ and which setting helps."""
    first = checkpoints[0]
    number = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
    other = checkpoints[number]
    ours, theirs = listed_in(first), listed_in(other)
    found = f"{list(shapes[number])} in {other.name}"
    difference = compare_lists(ours, theirs) if ours and theirs else None
    if difference and ours and theirs and (ours.file == theirs.file or not difference.equal):
        found += f"; {difference.words(first.name, other.name)}"
        if difference.equal:
            found += ", so the rows beyond them are padding"
    return VocabularyError(
        f"the vocabularies differ in size: tensor {tensor!r} has different shapes",
        expected=f"{list(shapes[0])} as in {first.name}",
        found=found,
        fix="add `tokenizer: {source: base}` to the recipe to keep the base's tokens, or `{source: union}` to have "
        "those of all models; --unsafe-truncate-embeddings cuts all to the shortest",
        tensor=tensor,
    )


def listed_in(checkpoint: Checkpoint, said: list[str] | None = None) -> Listed | None:
    """Tokens and ids, from whichever file tells them as it lies: what is only said in a message is worth no conversion.

    A merge by number needs no tokenizer, so a broken one does not end it, but is added to what is `said`.
    """
    if FAST not in checkpoint.files:
        return listed_tokens(checkpoint.location, checkpoint.files)
    try:
        found = read_tokenizer(checkpoint.location, checkpoint.name, checkpoint.files)
    except VocabularyError as error:
        if said is not None:
            said.append(f"{error.what}: whether {checkpoint.name} has the others' tokens is not known")
        return None
    return Listed(FAST, found.ids) if found else None


def _same_tokens(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether bytes alone tell that two checkpoints have the same tokens."""
    is_fast = FAST in first.files and FAST in second.files
    names = (FAST, ADDED) if is_fast else (FAST, ADDED, *SLOW)
    return not any(_differs(name, first, second) for name in names)


def _differing(first: Checkpoint, second: Checkpoint) -> str:
    """The names of tokenizer files that both have, and that differ; a broken tokenizer.json is nobody's affair here."""
    both = first.files.keys() & second.files.keys()
    return ", ".join(name for name in SLOW if name in both and FAST not in both and _differs(name, first, second))


def _differs(name: str, first: Checkpoint, second: Checkpoint) -> bool:
    if name not in first.files and name not in second.files:
        return False
    return first.files.get(name) != second.files.get(name) or (
        first.location.read(name, 0, first.files[name]) != second.location.read(name, 0, second.files[name])
    )
