"""The tokenizer fields of a recipe, checked for form. What vocabularies hold is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.methods.spec import MethodSpec
from cuvee.recipe.fields import mapping, text
from cuvee.recipe.keys import check_keys
from cuvee.recipe.notes import Notes, nearest, shown
from cuvee.recipe.references import read_reference
from cuvee.recipe.yaml_marks import Path

_KINDS = ("model_token", "zero")
_TOKEN_KEYS = ("source", "force")
_SOURCE_KEYS = ("kind", "model", "token", "token_id")


def read_tokenizer_source(data: Any, path: Path, notes: Notes) -> str | None:
    """`union`, `base`, or the model whose tokenizer the output gets; None if nothing is said."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return str(read_reference(data, path, notes)[0])
    return text(data, path, notes, what=str(path[-1]))


def read_tokenizer(data: Any, spec: MethodSpec, notes: Notes) -> Mapping[str, Any] | None:
    """The `tokenizer` mapping as written, its form checked.

    Raises:
        RecipeError: if an entry cannot be meant.
    """
    if data is None:
        return None
    path: Path = ("tokenizer",)
    fix = f"write `tokenizer: {{source: {data}}}`" if isinstance(data, str) else None
    tokenizer = mapping(data, path, notes, what="tokenizer", fix=fix)
    check_keys(tokenizer, "tokenizer", path, spec, notes)
    read_tokenizer_source(tokenizer.get("source"), (*path, "source"), notes)
    multiple = tokenizer.get("pad_to_multiple_of")
    if multiple is not None and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
        here = (*path, "pad_to_multiple_of")
        raise notes.error("pad_to_multiple_of must be a whole number of at least 1", here, found=shown(multiple))
    if tokenizer.get("tokens") is not None:
        tokens = mapping(tokenizer["tokens"], (*path, "tokens"), notes, what="tokens")
        for token, entry in tokens.items():
            _check_token(token, entry, (*path, "tokens", token), notes)
    return tokenizer


def _check_token(token: Any, entry: Any, path: Path, notes: Notes) -> None:
    if not isinstance(token, str):
        raise notes.error("a token must be text", path, found=shown(token), fix="quote it")
    if entry is None:
        return
    data = mapping(entry, path, notes, what=f"token {shown(token)}", fix="write `TOKEN: {source: MODEL}`")
    _warn_unknown(data, _TOKEN_KEYS, path, notes)
    if not isinstance(data.get("force", False), bool):
        raise notes.error("force must be true or false", (*path, "force"), found=shown(data["force"]))
    source, path = data.get("source"), (*path, "source")
    if source is None:
        return
    if not isinstance(source, Mapping) or "kind" not in source:
        read_reference(source, path, notes)
        return
    _warn_unknown(source, _SOURCE_KEYS, path, notes)
    kind = source["kind"]
    if kind not in _KINDS:
        raise notes.error(f"unknown kind {shown(kind)}", (*path, "kind"), expected=" or ".join(_KINDS))
    if kind == "model_token":
        _check_model_token(source, path, notes)


def _check_model_token(source: Mapping[str, Any], path: Path, notes: Notes) -> None:
    if source.get("model") is None:
        raise notes.error(
            "a model_token names no model", path, expected="{kind: model_token, model, token or token_id}"
        )
    read_reference(source["model"], (*path, "model"), notes)
    token, number = source.get("token"), source.get("token_id")
    if (token is None) == (number is None):
        raise notes.error("a model_token needs exactly one of token and token_id", path, found=shown(dict(source)))
    if token is not None and not isinstance(token, str):
        raise notes.error("token must be text", (*path, "token"), found=shown(token), fix="quote it, or write token_id")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        raise notes.error("token_id must be a whole number from 0", (*path, "token_id"), found=shown(number))


def _warn_unknown(data: Mapping[str, Any], known: tuple[str, ...], path: Path, notes: Notes) -> None:
    for key in data:
        if key not in known:
            near = nearest(key, known)
            fix = f"did you mean {near}?" if near else f"known keys here: {', '.join(known)}"
            notes.odd(f"unknown key {shown(key)}", (*path, key), fix)
