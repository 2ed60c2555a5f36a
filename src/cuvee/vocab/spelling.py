"""How tokens are spelt, and tokens of one spelling in another, so that only those that stand for the same bytes match.

A byte-level token `Ġcafé` is written `Ä cafÃ©` letter by letter, a SentencePiece one `▁café`; `café` is the middle of a
word in one tokenizer, any part of a word in another that writes no spaces, and the whole of one where words end in
`</w>`. The same text of a token means different things, and different texts the same. Which kinds there are is
`tokenizer`'s affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.vocab.tokenizer import Tokenizer, steps_of

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Spelling:
    """What the texts of a tokenizer's tokens mean.

    Attributes:
        model: BPE, Unigram, WordPiece or WordLevel.
        space: what a space is written as; "bytes" where every byte is written as a letter; empty where none is written.
        prefix: what pieces within a word begin with.
        suffix: what the last piece of a word ends in.

    """

    model: str
    space: str
    prefix: str
    suffix: str


def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """The spelling of a tokenizer's tokens."""
    model = tokenizer.document["model"]
    is_bytes = tokenizer.kind == "byte-level BPE"
    return Spelling(
        model="BPE" if tokenizer.kind.endswith("BPE") else tokenizer.kind,
        space="bytes" if is_bytes else _space(tokenizer.document),
        prefix=model.get("continuing_subword_prefix") or "",
        suffix=model.get("end_of_word_suffix") or "",
    )


def have_union(start: Tokenizer, other: Tokenizer) -> bool:
    """Whether tokens of one text mean the same in both."""
    if start.document is other.document or start.own == other.own:
        return True
    return spelling_of(start) == spelling_of(other)


def check_same_spelling(start: Tokenizer, other: Tokenizer) -> None:
    """Passes two tokenizers whose tokens mean the same where their texts are the same.

    Raises:
        VocabularyError: saying in what they differ.

    """
    if have_union(start, other):
        return
    ours, theirs = spelling_of(start), spelling_of(other)
    raise VocabularyError(
        "these tokenizers have no union: the same text of a token means different things in them",
        expected=f"{start.kind}{_words(ours, theirs)}, as in {start.name}",
        found=f"{other.kind}{_words(theirs, ours)} in {other.name}",
        fix="write `tokenizer: {source: base}`, which keeps the base's tokenizer, or name the model to take it from",
    )


def ids_as_spelt_by(output: Tokenizer, model: Tokenizer) -> Mapping[str, int]:
    """The ids of `model`'s tokens, by the texts that tokens of the same meaning have in `output`."""
    if output.document is model.document or spelling_of(output) == spelling_of(model):
        return model.ids
    # Where a byte and a letter mean the same, text is cut into the letter.
    ordered = sorted(model.ids.items(), key=lambda item: (_BYTE.fullmatch(item[0]) is None, -item[1]))
    by_meaning = {meaning_of(token, model): number for token, number in ordered}
    found = {token: by_meaning.get(meaning_of(token, output)) for token in output.ids}
    spelt = {token: number for token, number in found.items() if number is not None}
    return {**{token: model.ids[token] for token in model.added}, **spelt}


def meaning_of(token: str, tokenizer: Tokenizer) -> bytes:
    """The bytes of text that a token stands for; an added token's are its own letters."""
    if token in tokenizer.added:
        return token.encode()
    if tokenizer.kind == "byte-level BPE":
        letters = _letters()
        if all(letter in letters for letter in token):
            return bytes(letters[letter] for letter in token)
    elif tokenizer.kind in ("SentencePiece BPE", "BPE", "Unigram"):
        if single := _BYTE.fullmatch(token):
            return bytes([int(single[1], 16)])
        return token.replace("\u2581", " ").encode()
    elif tokenizer.kind == "WordPiece":
        return token[2:].encode() if token.startswith("##") else b" " + token.encode()
    return token.encode()


@cache
def _letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes as: printable ones as themselves, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _words(spelling: Spelling, other: Spelling) -> str:
    """What a spelling has otherwise than another, as it is said."""
    if spelling.model != other.model or (spelling.space != other.space and "bytes" in (spelling.space, other.space)):
        return ""
    found = []
    if spelling.space != other.space:
        found.append(f"spaces written as {spelling.space!r}" if spelling.space else "spaces written as nothing")
    if spelling.prefix != other.prefix:
        found.append(f"prefix {spelling.prefix!r}")
    if spelling.suffix != other.suffix:
        found.append(f"suffix {spelling.suffix!r}")
    return " with " + " and ".join(found) if found else ""


def _space(document: Mapping[str, Any]) -> str:
    """What the steps of a tokenizer write a space as; empty where they write none."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in steps_of(document.get(part)):
            if step.get("type") == "Metaspace":
                return str(step.get("replacement") or "\u2581")
            if step.get("type") == "Replace" and isinstance(pattern := step.get("pattern"), Mapping):
                ends = (pattern.get("String"), step.get("content"))
                if " " in ends and ends[0] != ends[1] and all(isinstance(end, str) and end for end in ends):
                    return str(ends[1] if ends[0] == " " else ends[0])
    return ""
