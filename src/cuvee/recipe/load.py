"""Recipes from files, text and Python data: read, checked as a whole, and frozen. No checkpoint is opened here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from cuvee.errors import MethodError, RecipeError, holds_token
from cuvee.methods.own_file import file_and_function, method_from_file
from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec
from cuvee.recipe import fields
from cuvee.recipe.check import check_recipe
from cuvee.recipe.keys import KEYS, MISSING, check_keys
from cuvee.recipe.notes import Notes, nearest, shown
from cuvee.recipe.schema import Recipe
from cuvee.recipe.structure import Body
from cuvee.recipe.tokens import read_tokenizer, read_tokenizer_source
from cuvee.recipe.yaml_marks import MAX_BYTES, Marks, load_yaml

_MAX_METHOD_NAME = 200


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, *, strict: bool = False, trust_remote_code: bool = False
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe that `source` holds, and its warnings, one line each.

    Args:
        source: a path; YAML text (known by a line break or a colon and a space); a mapping; or a recipe, which is kept.
        strict: refuse what would be a warning.
        trust_remote_code: run the Python file that the recipe's `merge_method` may name.

    Raises:
        RecipeError: if it is none of these, cannot be read or means nothing; facts `file`, `line` and `path`.
    """
    if isinstance(source, Recipe):
        _, warnings = _build(source.raw, source.marks, source.text, strict=strict, trust=trust_remote_code)
        return source, warnings
    if isinstance(source, Mapping):
        marks = Marks("recipe")
        try:
            data = fields.plain_data(source)
            _refuse_tokens(json.dumps(data), "recipe")
        except RecipeError as error:
            raise Notes(marks).placed(error, ()) from None
        return _build(data, marks, "", strict=strict, trust=trust_remote_code)
    if not isinstance(source, (str, PathLike)):
        raise RecipeError(
            f"a recipe cannot be of type {type(source).__name__}",
            expected="a path, YAML text, a mapping or a recipe that was loaded",
            found=shown(source),
        )
    if isinstance(source, str) and ("\n" in source or ": " in source):
        text, file = source, "recipe"
    else:
        text, file = _read(Path(source)), str(source)
    _refuse_tokens(text, file)
    data, marks = load_yaml(text, file)
    return _build(data, marks, text, strict=strict, trust=trust_remote_code)


def _refuse_tokens(text: str, file: str) -> None:
    """A recipe is published with the merge: in its card, beside the weights, and inside them."""
    line = next((number for number, line in enumerate(text.splitlines(), 1) if holds_token(line)), None)
    if line is not None:
        raise RecipeError(
            "the recipe holds an access token or a password, and recipes are published with what they make",
            fix="remove it and revoke it; put a token into HF_TOKEN, or run `hf auth login`",
            where=f"{file}:{line}",
            file=file,
            line=line,
        )


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML: the original text, comments and all, where there was one."""
    return recipe.text


def _read(path: Path) -> str:
    facts: dict[str, Any] = {"where": str(path), "file": str(path), "line": None}
    try:
        if path.is_dir():
            recipes = sorted(found.name for pattern in ("*.yml", "*.yaml") for found in path.glob(pattern))
            fix = f"did you mean {path / recipes[0]}?" if recipes else None
            raise RecipeError("the recipe is a directory", expected="a YAML file", fix=fix, **facts)
        with path.open("rb") as file:  # it may be a device without end
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RecipeError("the recipe is too large", expected="at most 16 MiB", **facts)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        facts |= {"where": f"{path}:{line}", "line": line}
        raise RecipeError("the recipe is not UTF-8 text", fix="save it as UTF-8", **facts) from None
    except FileNotFoundError:
        raise RecipeError("there is no such recipe file", fix=_near_file(path), **facts) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError("the recipe cannot be read", found=reason, **facts) from None


def _near_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no directory {path.parent} either"
    try:
        names = [found.name for found in path.parent.iterdir() if found.suffix in (".yml", ".yaml")]
    except OSError:
        return None
    import difflib

    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.with_name(near[0])}?" if near else None


def _build(data: Any, marks: Marks, text: str, *, strict: bool, trust: bool) -> tuple[Recipe, tuple[str, ...]]:
    notes = Notes(marks)
    if data is None:
        raise notes.error("the recipe is empty", (), expected="merge_method, and models, slices or modules")
    fields.mapping(data, (), notes, what="a recipe", fix="start with `merge_method: NAME`")
    spec = _method(data, notes, trust=trust)
    check_keys(data, "recipe", (), spec, notes)
    body = Body(spec, None, notes)
    if data.get("base_model") is not None:
        body.base = body.reference(data["base_model"], ("base_model",))
    if data.get("tokenizer") is not None and data.get("tokenizer_source") is not None:
        fix = "keep tokenizer, and write `tokenizer: {source: ...}`"
        raise notes.error("the recipe has both tokenizer and tokenizer_source", ("tokenizer_source",), fix=fix)
    recipe = Recipe(
        method=spec.name,
        base_model=body.base,
        modules=body.modules(data),
        dtype=fields.dtype(data.get("dtype"), ("dtype",), notes, what="dtype"),
        out_dtype=fields.dtype(data.get("out_dtype"), ("out_dtype",), notes, what="out_dtype"),
        parameters=body.parameters(data, ()),
        only=fields.texts(data.get("only"), ("only",), notes, what="only"),
        missing=fields.choice(data.get("missing"), ("missing",), notes, what="missing", choices=MISSING),
        tokenizer=read_tokenizer(data.get("tokenizer"), spec, notes),
        tokenizer_source=read_tokenizer_source(data.get("tokenizer_source"), ("tokenizer_source",), notes),
        chat_template=fields.text(data.get("chat_template"), ("chat_template",), notes, what="chat_template"),
        architectures=body.architectures,
        renames=body.renames,
        raw=data,
        text=text or yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
        file=marks.file,
        marks=marks,
    )
    check_recipe(recipe, spec, notes)
    return recipe, notes.warnings(strict=strict)


def _method(data: Mapping[str, Any], notes: Notes, *, trust: bool) -> MethodSpec:
    """The method that the recipe names."""
    if data.get("merge_method") is None:
        near = next(
            (key for key in data if nearest(key, ("merge_method", "method")) and key not in KEYS["recipe"]),
            None,
        )
        raise notes.error(
            "the recipe names no merge method",
            () if near is None else (near,),
            expected="merge_method: one of " + ", ".join(method_names()),
            fix=f"rename {near} to merge_method" if near else "add `merge_method: NAME` at the top",
        )
    name = fields.text(data["merge_method"], ("merge_method",), notes, what="merge_method") or ""
    own = file_and_function(name)
    if own and not trust:
        raise notes.error(
            f"the recipe brings a merge method of its own, {name}, which is a program",
            ("merge_method",),
            expected="your consent to run it",
            fix=f"read {own[0]}; if you trust it, add --trust-remote-code",
            method=name,
        )
    try:
        return (
            method_from_file(Path(notes.marks.file).parent / own[0], own[1])
            if own
            else get_method(name[:_MAX_METHOD_NAME])
        )
    except MethodError as error:
        raise notes.error(
            error.what[:200],
            ("merge_method",),
            expected=error.expected,
            found=_found(error),
            fix=error.fix,
            method=name,
        ) from None


def _found(error: MethodError) -> str | None:
    """What a method's error found, and in which line of the method's own file."""
    return f"{error.found} ({error.where})" if error.where and error.found else error.found
