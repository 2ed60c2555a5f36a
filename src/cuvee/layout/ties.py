"""Heads and the embeddings they are tied to: which is which, and which models need a head of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cuvee.layout.configs import Path, parts, roles, ties_embeddings
from cuvee.layout.facts import (
    EMBEDDINGS,
    FAMILY_HEADS,
    HEAD_NAMES,
    HEADS,
    HEADS_AFTER_ALL,
    MODELS_WITH_HEADS,
    MODELS_WITHOUT_HEADS,
    SCALED_IF_TIED,
    SHARED,
    SHARED_COPIES,
    TIED_BIASES,
)
from cuvee.layout.names import ends_with, place_of


def is_head(name: str) -> bool:
    """Whether a tensor is a head that may be tied to the input embedding."""
    return ends_with(name, HEADS) and place_of(name).stack is None


def input_embedding(names: Iterable[str]) -> str | None:
    """The one input embedding among tensors; None if there is none, or more than one that a head could be tied to."""
    found = [
        name
        for name in names
        if ends_with(name, EMBEDDINGS) and place_of(name).stack is None and not roles(name) & {"vision", "audio"}
    ]
    if len(found) > 1:  # T5 and BART store what encoder and decoder share once more under their own names
        found = [name for name in found if ends_with(name, (SHARED,))] or found
    return found[0] if len(found) == 1 else None


def tied_embedding(names: Iterable[str], head: str) -> str | None:
    """The embedding that the absent `head` is tied to, if `head` is a head and there is one embedding."""
    return input_embedding(names) if is_head(head) else None


def tied_to(names: Collection[str], absent: str) -> str | None:
    """The tensor that an absent one is tied to; None if there is none.

    A head and what encoder and decoder share: the embedding. The bias of a head that has another beside it: that.
    """
    if ends_with(absent, SHARED_COPIES):
        embedding = input_embedding(names)
        return embedding if embedding is not None and ends_with(embedding, (SHARED,)) else None
    for ending, other in TIED_BIASES.items():
        if ends_with(absent, (ending,)) and absent.removesuffix(ending) + other in names:
            return absent.removesuffix(ending) + other
    return tied_embedding(names, absent)


def beside_head(names: Iterable[str], head: str) -> frozenset[str]:
    """The other tensors of the head's module: what BERT's `cls.predictions.decoder.weight` stands among."""
    module = head.rpartition(".")[0]
    homes = tuple(home + "." for home in (module, module.rpartition(".")[0]) if home)
    return frozenset(name for name in names if name != head and name.startswith(homes) and place_of(name).stack is None)


def copies_of_embedding(names: Iterable[str], embedding: str) -> list[str]:
    """The tensors that hold the same values as the input embedding if the model's embeddings are tied.

    The head, and the embeddings of encoder and decoder beside the one that they share.
    """
    return [
        name
        for name in names
        if name != embedding and (is_head(name) or (ends_with(embedding, (SHARED,)) and ends_with(name, SHARED_COPIES)))
    ]


def needs_head(config: Mapping[str, Any]) -> bool:
    """Whether a model's class has a head that is not tied: it must then be stored."""
    architectures = config.get("architectures") or ()
    speaks = any(kind in name for name in map(str, architectures) for kind in MODELS_WITH_HEADS)
    return speaks and not ties_embeddings(config)


def lacks_head(config: Mapping[str, Any]) -> bool:
    """Whether a model's class is known to have no head: `BertModel`, classifiers. False where no class is named."""
    architectures = [str(name) for name in config.get("architectures") or ()]
    return bool(architectures) and all(
        name.endswith(MODELS_WITHOUT_HEADS) and not any(word in name for word in HEADS_AFTER_ALL)
        for name in architectures
    )


def missing_head(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str | None:
    """The head that a model's class and config ask for and no tensor can be; None where all is as it should be.

    Any other matrix with a row a token outside the layers may be the head under a name of its own.
    """
    embedding = input_embedding(shapes)
    if embedding is None or len(shapes[embedding]) != 2 or not needs_head(config):
        return None
    name = head_name(embedding, config)
    rows = shapes[embedding][0]
    others = (
        len(shape) == 2 and rows in shape and place_of(other).stack is None
        for other, shape in shapes.items()
        if other != embedding
    )
    return None if any(others) else name


def head_name(embedding: str, config: Mapping[str, Any]) -> str | None:
    """What the head beside this embedding is called; None if it is not known."""
    if config.get("model_type") in FAMILY_HEADS:
        return FAMILY_HEADS[str(config["model_type"])]
    return next((head for ending, head in HEAD_NAMES.items() if ends_with(embedding, (ending,))), None)


def head_scale(config: Mapping[str, Any], width: int) -> float:
    """What a model multiplies the decoder's output by before its head: T5 with a tied head by `width ** -0.5`.

    transformers 4 goes by `tie_word_embeddings`; 5 by `scale_decoder_outputs`, where a config says it.
    """
    if config.get("model_type") not in SCALED_IF_TIED:
        return 1.0
    scaled = config.get(_SCALES_OUTPUT, config.get("tie_word_embeddings"))
    return 1.0 if scaled is False else float(width) ** -0.5


def untied_edits(config: Mapping[str, Any]) -> dict[Path, Any]:
    """What a tied model's config must say once it has a head of its own."""
    said = {(*path, "tie_word_embeddings"): False for path, part in parts(config) if part.get("tie_word_embeddings")}
    scaled: dict[Path, Any] = {(_SCALES_OUTPUT,): False} if config.get(_SCALES_OUTPUT) else {}
    return {("tie_word_embeddings",): False, **said, **scaled}


_SCALES_OUTPUT = "scale_decoder_outputs"
