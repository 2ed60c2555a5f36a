"""Tokens of one kind of tokenizer in the spelling of another, so that only those that stand for the same bytes match.

A byte-level token `Ġcafé` is written `Ä cafÃ©` letter by letter, a SentencePiece one `▁café`: the same text of a token
means different things, and different texts the same. Which kinds there are is `tokenizer`'s affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from cuvee.vocab.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def ids_as_spelt_by(output: Tokenizer, model: Tokenizer) -> Mapping[str, int]:
    """The ids of `model`'s tokens, by the texts that tokens of the same meaning have in `output`."""
    if output.kind == model.kind:
        return model.ids
    # Where a byte and a letter mean the same, text is cut into the letter.
    ordered = sorted(model.ids.items(), key=lambda item: (_BYTE.fullmatch(item[0]) is None, -item[1]))
    by_meaning = {_meaning(token, model): number for token, number in ordered}
    found = {token: by_meaning.get(_meaning(token, output)) for token in output.ids}
    spelt = {token: number for token, number in found.items() if number is not None}
    return {**{token: model.ids[token] for token in model.added}, **spelt}


def _meaning(token: str, tokenizer: Tokenizer) -> bytes:
    """The bytes of text that a token stands for; an added token's are its own letters."""
    if token in tokenizer.added:
        return token.encode()
    if tokenizer.kind == "byte-level BPE":
        letters = _letters()
        if all(letter in letters for letter in token):
            return bytes(letters[letter] for letter in token)
    elif tokenizer.kind in ("SentencePiece BPE", "Unigram"):
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
