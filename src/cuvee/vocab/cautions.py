"""What is to be said about a union: tokens that text never meets there, and tokens that part a text otherwise.

A union cuts all text as the tokenizer that it starts from does. The ids are right whatever is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cuvee.vocab.compare import some
from cuvee.vocab.numbers import json_of
from cuvee.vocab.output import OutputTokenizer
from cuvee.vocab.spelling import meaning_of
from cuvee.vocab.tokenizer import Tokenizer, steps_of

_CHANGES = ("Lowercase", "StripAccents", "BertNormalizer", "Precompiled", "NFD", "NFKC", "NFKD", "Nmt")
"""Steps that make other letters of some, so that tokens with these never come about; NFC spares nearly all."""
_BYTES = dict.fromkeys(f"<0x{byte:02X}>" for byte in range(256))


def cautions(output: OutputTokenizer) -> tuple[str, ...]:
    """A line for each thing that a user of the union may not expect."""
    return (*_never_found(output), *_capitals(output), *_unused_bytes(output), *_parting(output))


def _never_found(output: OutputTokenizer) -> Iterable[str]:
    """New tokens that the base's normalizer changes, where the others' normalizers do not do the same."""
    steps = _changes(output.start)
    if not steps or all(_changes(other) == steps for other in output.merges_of):
        return
    new = [token for token in output.ids if token not in output.start.ids and token not in output.added]
    normalize = _normalizer(steps, output.start.name)
    texts = {token: text for token in new if (text := _text(token, output.start))}
    joined = " ".join(texts.values())
    if normalize(joined) == joined:
        return
    lost = [token for token, text in texts.items() if normalize(text).strip() != text]
    if lost:
        kinds = ", ".join(dict.fromkeys(str(step["type"]) for step in steps))
        yield (
            f"{len(lost)} of {len(new)} tokens that the union brings from {_names(output.merges_of)} are never found: "
            f"text is normalised as by {output.start.name} ({kinds}) first, which changes them ({some(tuple(lost))}); "
            "start from the other tokenizer if that matters"
        )


def _capitals(output: OutputTokenizer) -> Iterable[str]:
    """Models that know small letters alone, where the base's tokenizer keeps capitals."""
    lost = [other for other in output.merges_of if _makes_small(other)]
    if lost and not _makes_small(output.start):
        yield (
            f"the tokenizer of {_names(lost)} makes all letters small, that of {output.start.name} does not: words "
            "with capitals are not among its tokens, and stay unknown or in pieces if no other model has them; start "
            "from that tokenizer if that matters"
        )


def _unused_bytes(output: OutputTokenizer) -> Iterable[str]:
    """New tokens for single bytes, where the base's tokenizer never falls back to bytes."""
    if output.start.document["model"].get("byte_fallback") or not output.appended:
        return
    lost = [token for token in _BYTES if token in output.ids and token not in output.start.ids]
    if lost:
        yield (
            f"{len(lost)} tokens for single bytes that the union brings are never used: the tokenizer of "
            f"{output.start.name} has no byte fallback, so letters that no model knows stay unknown"
        )


def _parting(output: OutputTokenizer) -> Iterable[str]:
    """New added tokens that are not special, where the base's tokenizer puts a space before every part."""
    plain = tuple(token for token in output.new_added if not output.added[token]["special"])
    if plain and _puts_spaces(output.start):
        yield (
            f"{len(plain)} added tokens that are not special are found anywhere in a text, and the tokenizer of "
            f"{output.start.name} puts a space after each: {some(plain)}"
        )


def _puts_spaces(tokenizer: Tokenizer) -> bool:
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") == "always")
        for part in ("normalizer", "pre_tokenizer")
        for step in steps_of(tokenizer.document.get(part))
    )


def _makes_small(tokenizer: Tokenizer) -> bool:
    steps = _changes(tokenizer)
    return any(
        step["type"] == "Lowercase" or (step["type"] == "BertNormalizer" and step.get("lowercase")) for step in steps
    )


def _changes(tokenizer: Tokenizer) -> list[Mapping[str, Any]]:
    return [step for step in steps_of(tokenizer.document.get("normalizer")) if step.get("type") in _CHANGES]


def _normalizer(steps: Sequence[Mapping[str, Any]], name: str) -> Any:
    from tokenizers import Tokenizer as Library

    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    document = {"version": "1.0", "normalizer": {"type": "Sequence", "normalizers": steps}, "model": model}
    return Library.from_str(json_of(document, name)).normalizer.normalize_str


def _text(token: str, tokenizer: Tokenizer) -> str:
    """The text that a token stands for, without spaces at its ends; empty if it is no whole letters."""
    if token in _BYTES:
        return ""
    try:
        return meaning_of(token, tokenizer).decode().strip()
    except UnicodeDecodeError:
        return ""


def _names(others: Sequence[Tokenizer]) -> str:
    return ", ".join(dict.fromkeys(other.name for other in others))
