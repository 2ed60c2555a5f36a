"""A checkpoint's tokenizer, read from its files: tokens and ids, added tokens with their flags, kind, settings.

Nothing is built or run; `slow` converts tokenizers that have no tokenizer.json. What becomes of a tokenizer in a merge
is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Location
from cuvee.vocab.json_text import parsed
from cuvee.vocab.slow import converted
from cuvee.vocab.wellformed import check_ids, check_tokenizer

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"
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
        text: tokenizer.json as it lies; None if there was none, and `document` was made from other files.
        more: added_tokens.json; empty if there is none.

    """

    name: str
    location: Location
    files: Mapping[str, int]
    document: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    text: bytes | None
    more: Mapping[str, Any]

    @property
    def is_slow(self) -> bool:
        """Whether there was no tokenizer.json."""
        return self.text is None

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


def read_tokenizer(
    location: Location, name: str, files: Mapping[str, int] | None = None, known: Iterable[Tokenizer] = ()
) -> Tokenizer | None:
    """The tokenizer of the checkpoint at `location`; None if it has none.

    Args:
        location: where the files lie.
        name: what messages call the model.
        files: the location's listing, if it is known already.
        known: tokenizers read before; one that has the same files, byte for byte, is not read again.

    Raises:
        VocabularyError: if there is one that cannot be read.

    """
    files = location.sizes() if files is None else files
    settings = settings_of(location, files, name)
    document: Mapping[str, Any]
    text = _bytes(location, files, FAST, name)
    twin = next((each for each in known if each.text == text), None) if text is not None else None
    if text is not None:
        document = twin.document if twin else _object(text, FAST, name)
    elif any(file in files for file in SLOW):
        document = converted(location, files, name)
    else:
        return None
    more = _object(_bytes(location, files, ADDED, name) or b"{}", ADDED, name)
    if twin and (twin.settings, twin.more) == (settings, more):
        return replace(twin, name=name, location=location, files=files)
    try:
        check_tokenizer(document, settings)
        ids, added = _tokens(document, settings, more)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(
            f"{FAST} of {name} is not a tokenizer", found=str(error)[:300], where=name, checkpoint=name
        ) from error
    return Tokenizer(name, location, files, document, settings, ids, added, text, more)


def settings_of(location: Location, files: Mapping[str, int], name: str) -> dict[str, Any]:
    """tokenizer_config.json; empty if there is none."""
    return _object(_bytes(location, files, SETTINGS, name) or b"{}", SETTINGS, name)


def without_merges(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without the largest part of it, for those who need no merges any more."""
    document = tokenizer.document
    if not document["model"].get("merges"):
        return tokenizer
    return replace(tokenizer, document={**document, "model": {**document["model"], "merges": []}})


def _bytes(location: Location, files: Mapping[str, int], file: str, name: str) -> bytes | None:
    if file not in files:
        return None
    if files[file] > _MAX_BYTES:
        raise VocabularyError(f"{file} of {name} is too large", found=f"{files[file]} bytes", where=name)
    return location.read(file, 0, files[file])


def _object(text: bytes, file: str, name: str) -> dict[str, Any]:
    try:
        found = parsed(text)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{file} of {name} is not JSON", found=str(error)[:200], where=name) from error
    if not isinstance(found, dict):
        raise VocabularyError(f"{file} of {name} is not a JSON object", found=type(found).__name__, where=name)
    return found


def _tokens(
    document: Mapping[str, Any], settings: Mapping[str, Any], more: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, Mapping[str, Any]]]:
    """Ids of all tokens and flags of the added ones.

    transformers adds what tokenizer_config.json and added_tokens.json list beyond tokenizer.json, so that counts too.
    """
    ids = dict(_model_ids(document["model"]))
    added: dict[str, Mapping[str, Any]] = {}
    listed = {entry["content"]: (int(entry["id"]), entry) for entry in document.get("added_tokens") or ()}
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        listed.setdefault(entry["content"], (int(number), entry))
    for token, number in more.items():
        listed.setdefault(token, (number, {}))
    check_ids({token: number for token, (number, _) in listed.items()})
    for token, (number, entry) in sorted(listed.items(), key=lambda item: item[1][0]):
        ids.setdefault(token, number)
        added[token] = flags_of(entry)
    check_ids(ids)
    return _in_order(ids), added


def _in_order(ids: dict[str, int]) -> dict[str, int]:
    numbers = list(ids.values())
    return ids if numbers == sorted(numbers) else dict(sorted(ids.items(), key=itemgetter(1)))


def flags_of(entry: Mapping[str, Any]) -> dict[str, bool]:
    """How an added token is looked for in text; a token without a word about it is an ordinary, normalised one."""
    special = bool(entry.get("special", False))
    return {flag: bool(entry.get(flag, flag == "normalized" and not special)) for flag in _FLAGS}


def _model_ids(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocabulary: Mapping[str, int] | list[Any] = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return vocabulary


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
    return any(each.get("type") == "ByteLevel" for each in steps_of(step))


def steps_of(step: Any) -> Iterator[Mapping[str, Any]]:
    """A step and those it is made of."""
    if isinstance(step, Mapping):
        yield step
        for key in ("normalizers", "pretokenizers", "decoders"):
            inner = step.get(key)
            for each in inner if isinstance(inner, list) else ():
                yield from steps_of(each)
