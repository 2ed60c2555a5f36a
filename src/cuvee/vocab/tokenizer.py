"""A checkpoint's tokenizer, read from its files: tokens and ids, added tokens with their flags, kind, settings.

Nothing is built or run; `slow` converts tokenizers that have no tokenizer.json. What becomes of a tokenizer in a merge
is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Location
from cuvee.vocab.slow import converted

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SLOW = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
_MAX_BYTES = 512 << 20
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """One tokenizer.

    Attributes:
        name: what messages call the model it belongs to.
        location: where its files lie.
        files: those files' sizes by name.
        document: tokenizer.json.
        settings: tokenizer_config.json; empty if there is none.
        ids: every token's id, added ones included, in the order of ids.
        added: added tokens by text, each with its flags, in the order of ids.
        is_slow: whether there was no tokenizer.json, and `document` was made from other files.

    """

    name: str
    location: Location
    files: Mapping[str, int]
    document: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    is_slow: bool

    @cached_property
    def kind(self) -> str:
        """What its tokens' texts stand for and how text is cut into them."""
        return _kind_of(self.document)

    @cached_property
    def own(self) -> Mapping[str, int]:
        """The tokens of the model proper: no added ones, save those that are both."""
        return _model_ids(self.document["model"])

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.ids.values(), default=-1) + 1


def read_tokenizer(location: Location, name: str, files: Mapping[str, int] | None = None) -> Tokenizer | None:
    """The tokenizer of the checkpoint at `location`; None if it has none.

    Args:
        location: where the files lie.
        name: what messages call the model.
        files: the location's listing, if it is known already.

    Raises:
        VocabularyError: if there is one that cannot be read.

    """
    files = location.sizes() if files is None else files
    settings = settings_of(location, files, name)
    if FAST in files:
        document = _json(location, files, FAST, name)
    elif any(file in files for file in SLOW):
        document = converted(location, files, name)
    else:
        return None
    try:
        ids, added = _tokens(document, settings, location, files, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VocabularyError(
            f"{FAST} of {name} is not a tokenizer", found=f"{type(error).__name__}: {error}"[:200], where=name
        ) from error
    return Tokenizer(name, location, files, document, settings, ids, added, FAST not in files)


def settings_of(location: Location, files: Mapping[str, int], name: str) -> dict[str, Any]:
    """tokenizer_config.json; empty if there is none."""
    return _json(location, files, SETTINGS, name) if SETTINGS in files else {}


def _json(location: Location, files: Mapping[str, int], file: str, name: str) -> dict[str, Any]:
    if files[file] > _MAX_BYTES:
        raise VocabularyError(f"{file} of {name} is too large", found=f"{files[file]} bytes", where=name)
    try:
        found = json.loads(location.read(file, 0, files[file]))
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{file} of {name} is not JSON", found=str(error)[:200], where=name) from error
    if not isinstance(found, dict):
        raise VocabularyError(f"{file} of {name} is not a JSON object", found=type(found).__name__, where=name)
    return found


def _tokens(
    document: Mapping[str, Any], settings: Mapping[str, Any], location: Location, files: Mapping[str, int], name: str
) -> tuple[dict[str, int], dict[str, Mapping[str, Any]]]:
    """Ids of all tokens and flags of the added ones.

    transformers adds what tokenizer_config.json and added_tokens.json list beyond tokenizer.json, so that counts too.
    """
    ids = dict(_model_ids(document["model"]))
    added: dict[str, Mapping[str, Any]] = {}
    listed = {entry["content"]: (int(entry["id"]), entry) for entry in document.get("added_tokens") or ()}
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        listed.setdefault(entry["content"], (int(number), entry))
    if "added_tokens.json" in files:
        for token, number in _json(location, files, "added_tokens.json", name).items():
            listed.setdefault(token, (int(number), {}))
    for token, (number, entry) in sorted(listed.items(), key=lambda item: item[1][0]):
        ids.setdefault(token, number)
        added[token] = flags_of(entry)
    return dict(sorted(ids.items(), key=lambda item: item[1])), added


def flags_of(entry: Mapping[str, Any]) -> dict[str, bool]:
    """How an added token is looked for in text; a token without a word about it is an ordinary, normalised one."""
    special = bool(entry.get("special", False))
    return {flag: bool(entry.get(flag, flag == "normalized" and not special)) for flag in _FLAGS}


def _model_ids(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _kind_of(document: Mapping[str, Any]) -> str:
    model = document["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece")
    if kind != "BPE":
        return str(kind)
    return (
        "byte-level BPE"
        if _uses_bytes(document.get("pre_tokenizer")) or _uses_bytes(document.get("decoder"))
        else ("SentencePiece BPE" if model.get("byte_fallback") or model.get("fuse_unk") else "BPE")
    )


def _uses_bytes(step: Any) -> bool:
    """Whether a step, or one of those it is made of, maps bytes to letters as GPT-2 did."""
    if not isinstance(step, Mapping):
        return False
    inner = [*(step.get("pretokenizers") or ()), *(step.get("decoders") or ())]
    return step.get("type") == "ByteLevel" or any(map(_uses_bytes, inner))
