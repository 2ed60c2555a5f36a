"""One model with its vocabulary tensors in the output's order: rows gathered from its own and other models' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.errors import VocabularyError
from cuvee.layout.ties import tied_embedding
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.reference import ModelRef
from cuvee.tensors.rowmaps import encode_map
from cuvee.tensors.rows import RowMean, Rows
from cuvee.tensors.sources import Source
from cuvee.views.vocabulary_sizes import rows_of
from cuvee.vocab.rows import RowMaps
from cuvee.vocab.tokenizer import Tokenizer


@dataclass(frozen=True)
class VocabularyModel:
    """A model with a vocabulary."""

    ref: ModelRef
    checkpoint: Checkpoint
    axes: Mapping[str, int]
    tokenizer: Tokenizer

    @property
    def rows(self) -> int:
        """Rows that all of its vocabulary tensors have."""
        return rows_of(self.checkpoint, self.axes)


def with_rows(number: int, models: Sequence[VocabularyModel], maps: RowMaps) -> Checkpoint:
    """One model with every vocabulary tensor in the output's order."""
    model = models[number]
    index = maps.index[number]
    used = [table for table in range(len(models)) if (index[table] >= 0).any()] or [number]
    padded = maps.rows > maps.tokens
    texts = [encode_map(index[table][: maps.tokens]) for table in used]
    as_it_is = used == [number] and not padded and bool((index[number] == np.arange(maps.rows)).all())
    if padded:
        filler = np.full(maps.rows, -1, np.int32)
        filler[maps.tokens :] = 0
        tail = encode_map(filler)
        texts_padded = [encode_map(index[table]) for table in used]
    changed: dict[str, Source] = {}
    heads = {} if used == [number] else _heads_of_others(number, models)
    for name, axis in {**model.axes, **heads}.items():
        if as_it_is and model.checkpoint.tensors[name].shape[axis] == maps.rows:
            continue
        tables = [_counterpart(name, axis, model, models[table]) for table in used]
        rows = Rows(tuple(tables), tuple(texts), maps.tokens, axis)
        if padded:
            mean = RowMean(rows, maps.tokens, axis)
            rows = Rows((*tables, mean), (*texts_padded, tail), maps.rows, axis)
        changed[name] = rows
    return replace(model.checkpoint, tensors={**model.checkpoint.tensors, **changed})


def _heads_of_others(number: int, models: Sequence[VocabularyModel]) -> dict[str, int]:
    """Heads that other models have and a tied model has not: rows of theirs must not stand in its embedding."""
    own = models[number].checkpoint.tensors
    return {
        name: axis
        for other in models
        for name, axis in other.axes.items()
        if name not in own and tied_embedding(own, name) is not None
    }


def _table(name: str, model: VocabularyModel) -> Source | None:
    """What plays the part of tensor `name` in a model: itself, or the embedding that its head is tied to."""
    tensors = model.checkpoint.tensors
    if name in model.axes:
        return tensors[name]
    tied = tied_embedding(tensors, name)
    return tensors[tied] if tied else None


def _counterpart(name: str, axis: int, model: VocabularyModel, other: VocabularyModel) -> Source:
    """The table of another model whose rows can stand beside those of a model's tensor `name`."""
    mine, theirs = _table(name, model), _table(name, other)
    width, found = (None if table is None else table.shape[axis + 1 :] for table in (mine, theirs))
    if theirs is None or found != width:
        raise VocabularyError(
            f"rows of {name!r} cannot be taken from {other.checkpoint.name}",
            expected=f"a tensor with rows of shape {list(width or ())}",
            found="none" if found is None else f"rows of shape {list(found)}",
            fix="merge models of one architecture and size",
            tensor=name,
        )
    return theirs
