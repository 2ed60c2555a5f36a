"""What headers, config and tokenizer say of one another: layers, heads and vocabulary. No weight is read here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.checking.findings import Finding
from cuvee.errors import CheckpointError
from cuvee.layout.configs import parts, ties_embeddings
from cuvee.layout.facts import LAYER_COUNT_KEYS, SHARED_LAYER_KEYS
from cuvee.layout.layout import Layout, layout_of
from cuvee.layout.ties import input_embedding, is_head, needs_head
from cuvee.layout.vocabulary import vocabulary_axes, vocabulary_rows, vocabulary_size
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import itemsize, name_of

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "unk_token_id")
_MAX_TOKENIZER_BYTES = 512 << 20
_SHOWN = 5


def structure(checkpoint: Checkpoint, *, tokenizer: bool = True) -> Iterator[Finding]:
    """What headers, config and, unless left out, tokenizer files say of the checkpoint."""
    yield _files(checkpoint)
    if not checkpoint.config:
        yield Finding("config", "note", "there is no config.json, so only the weights are checked")
        return
    layout = layout_of(checkpoint.tensors, checkpoint.config)
    yield from _layers(checkpoint, layout)
    yield from _ties(checkpoint)
    yield from _vocabulary(checkpoint, tokenizer=tokenizer)


def _files(checkpoint: Checkpoint) -> Finding:
    shards = len({file for file in checkpoint.weight_files.values() if file}) or 1
    dtypes = Counter(source.dtype for source in checkpoint.tensors.values())
    size = sum(_elements(s.shape) * itemsize(s.dtype) for s in checkpoint.tensors.values())
    kinds = ", ".join(name_of(code) for code, _ in dtypes.most_common())
    files = "1 file" if shards == 1 else f"{shards} files that agree with their index"
    text = f"{len(checkpoint.tensors)} tensors, {size / 1e6:,.1f} MB of {kinds} in {files}"
    if empty := [name for name, source in checkpoint.tensors.items() if _elements(source.shape) == 0]:
        return Finding("files", "note", f"{text}; without elements: {_some(empty)}")
    return Finding("files", "ok", text)


def _layers(checkpoint: Checkpoint, layout: Layout) -> Iterator[Finding]:
    told = []
    for stack, counts in layout.counts.items():
        numbers = {place.layer for place in layout.places.values() if place.stack == stack}
        said, key = counts[0].value, ".".join(counts[0].path)
        if missing := sorted(set(range(said)) - numbers):
            text = f"{stack}: {key} is {said}, and layers {_some(missing)} are not stored"
            shared = next((k for _, part in parts(checkpoint.config) for k in SHARED_LAYER_KEYS if k in part), None)
            if shared:
                yield Finding("layers", "note", f"{text}; {shared} says that layers share their tensors")
            else:
                yield Finding("layers", "problem", text)
            continue
        beyond = len([number for number in numbers if number >= said])
        told.append(f"{stack}: {said}" + (f" and {beyond} beyond them" if beyond else ""))
        if odd := _lacking(layout, stack, said):
            yield Finding("layers", "note", odd)
    yield from _layer_numbers(checkpoint.config)
    if told:
        yield Finding("layers", "ok", "; ".join(told))


def _layer_numbers(config: Mapping[str, Any]) -> Iterator[Finding]:
    """What the config says of layers that cannot be, whatever is stored."""
    for path, part in parts(config):
        for key in LAYER_COUNT_KEYS:
            if isinstance(part.get(key), (str, float, bool)):
                text = f"{'.'.join((*path, key))} is {repr(part[key])[:40]}, which is no number of layers"
                yield Finding("layers", "problem", text)
        types, count = part.get("layer_types"), part.get("num_hidden_layers")
        if isinstance(types, list) and isinstance(count, int) and len(types) != count:
            where = ".".join((*path, "layer_types"))
            yield Finding("layers", "problem", f"{where} has {len(types)} entries for {count} layers")


def _lacking(layout: Layout, stack: str, said: int) -> str | None:
    """A layer that has only a part of what the others have: often what a broken merge leaves."""
    builds = {layer: layout.build(stack, layer) for layer in range(said)}
    usual, times = Counter(builds.values()).most_common(1)[0]
    odd = [layer for layer, build in builds.items() if build < usual]
    if times <= said // 2 or not odd:
        return None
    lacks = sorted(usual - builds[odd[0]])
    return f"{stack}: layer {_some(odd)} lacks {_some(lacks)}, which {times} layers have"


def _ties(checkpoint: Checkpoint) -> Iterator[Finding]:
    embedding = input_embedding(checkpoint.tensors)
    if embedding is None:
        return
    heads = [name for name in checkpoint.tensors if is_head(name)]
    shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
    if heads:
        state = "stored beside a tied embedding" if _says_tied(checkpoint) else "stored"
        yield Finding("ties", "ok", f"head {heads[0]} is {state}")
    elif not needs_head(checkpoint.config):
        yield Finding("ties", "ok", f"no head is stored; {embedding} serves" if ties_embeddings(checkpoint.config) else
                      "no head is stored, and none is needed")  # fmt: skip
    elif len(vocabulary_axes(shapes, checkpoint.config)) > 1:
        yield Finding("head", "note", "tie_word_embeddings is false, and no tensor has a name that heads have")
    else:
        text = "tie_word_embeddings is false, so the model needs a head of its own, and none is stored"
        yield Finding("head", "problem", text)


def _says_tied(checkpoint: Checkpoint) -> bool:
    said = [part["tie_word_embeddings"] for _, part in parts(checkpoint.config) if "tie_word_embeddings" in part]
    return bool(said) and ties_embeddings(checkpoint.config)


def _vocabulary(checkpoint: Checkpoint, *, tokenizer: bool) -> Iterator[Finding]:
    shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
    rows = vocabulary_rows(shapes, checkpoint.config)
    if rows is None:
        return
    said = vocabulary_size(checkpoint.config)
    bad = []
    if isinstance(said, int) and said > rows:
        bad.append(f"config.json says vocab_size {said}, and the embedding has {rows} rows")
    try:
        tokens = tokenizer_length(checkpoint) if tokenizer else None
    except CheckpointError as error:
        bad.append(error.what)
        tokens = None
    if tokens is not None and tokens > rows:
        bad.append(f"the tokenizer has ids up to {tokens - 1}, and the embedding has {rows} rows")
    for key, value in _special_ids(checkpoint.config):
        if value >= rows:
            bad.append(f"{key} is {value}, and the embedding has {rows} rows")
    for text in bad:
        yield Finding("vocabulary", "problem", text)
    if not bad:
        known = f", {tokens} tokens in the tokenizer" if tokens is not None else ""
        more = isinstance(said, int) and said < rows  # so it is in Mllama, whose image token has a row of its own
        beyond = f", {rows - said} more than vocab_size says" if more and said else ""
        yield Finding("vocabulary", "note" if beyond else "ok", f"{rows} rows{beyond}{known}")


def _special_ids(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key in _SPECIAL_IDS:
        value = config.get(key)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield key, number


def tokenizer_length(checkpoint: Checkpoint) -> int | None:
    """One more than the largest id in tokenizer.json (or vocab.json, or lines of vocab.txt); None without any of them.

    Raises:
        CheckpointError: if the file cannot be what its name says.

    """
    for name in ("tokenizer.json", "vocab.json", "vocab.txt"):
        size = checkpoint.files.get(name)
        if size is None or size > _MAX_TOKENIZER_BYTES:
            continue
        raw = checkpoint.location.read(name, 0, size)
        if name.endswith(".txt"):
            return len(raw.rstrip(b"\n").split(b"\n")) if raw else None
        try:
            table = json.loads(raw)
        except (ValueError, RecursionError):
            raise CheckpointError(f"{name} is not JSON", checkpoint=checkpoint.name, file=name) from None
        ids = list(_ids(table)) if isinstance(table, dict) else []
        if ids:
            return max(ids) + 1
    return None


def _ids(table: Mapping[str, Any]) -> Iterator[int]:
    """Every token id of a tokenizer.json or vocab.json."""
    model = table.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else table
    if isinstance(vocabulary, list):  # Unigram: a piece's place is its id
        yield len(vocabulary) - 1
    elif isinstance(vocabulary, dict):
        yield from (value for value in vocabulary.values() if isinstance(value, int))
    added = table.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            yield token["id"]


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _some(items: list[Any]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(map(str, items[:_SHOWN])) + more
