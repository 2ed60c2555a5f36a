"""Model references as recipes write them: text, or a mapping of path, revision and adapter. Nothing is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cuvee.recipe.fields import text
from cuvee.recipe.notes import Notes, nearest, shown
from cuvee.recipe.yaml_marks import Path
from cuvee.tensors.reference import ModelRef

_FORM = "PATH_OR_HUB_ID[@REVISION][+ADAPTER[@REVISION]], or {model: {path, revision}, lora: {path, revision}}"


def read_reference(data: Any, path: Path, notes: Notes) -> tuple[ModelRef, str | None]:
    """The reference that `data` means, and its `override_architecture`.

    Raises:
        RecipeError: if it names no model.
    """
    if isinstance(data, str):
        return _checked(ModelRef.parse(data), data, path, notes), None
    if not isinstance(data, Mapping):
        fix = "quote it" if isinstance(data, (int, float)) else None
        raise notes.error(
            "a model reference must be text or a mapping", path, expected=_FORM, found=shown(data), fix=fix
        )
    if "path" in data:
        return _path_and_revision(data, path, notes), None
    if data.get("model") is None:
        raise notes.error("a model reference names no model", path, expected=_FORM, found=shown(dict(data)))
    _warn_unknown(data, ("model", "lora", "override_architecture"), path, notes)
    model, _ = read_reference(data["model"], (*path, "model"), notes)
    if data.get("lora") is not None:
        adapter, _ = read_reference(data["lora"], (*path, "lora"), notes)
        model = replace(model, adapters=(*model.adapters, adapter))
    here = (*path, "override_architecture")
    return model, text(data.get("override_architecture"), here, notes, what="override_architecture")


def _path_and_revision(data: Mapping[str, Any], path: Path, notes: Notes) -> ModelRef:
    _warn_unknown(data, ("path", "revision"), path, notes)
    where = text(data["path"], (*path, "path"), notes, what="path")
    revision = text(data.get("revision"), (*path, "revision"), notes, what="revision")
    return _checked(ModelRef(where or "", revision), data, path, notes)


def _checked(model: ModelRef, data: Any, path: Path, notes: Notes) -> ModelRef:
    for part in (model, *model.adapters):
        if not part.path or part.revision == "" or "\0" in str(part):
            raise notes.error("a model reference has an empty part", path, expected=_FORM, found=shown(data))
    return model


def _warn_unknown(data: Mapping[str, Any], known: tuple[str, ...], path: Path, notes: Notes) -> None:
    for key in data:
        if key not in known:
            near = nearest(key, known)
            fix = f"did you mean {near}?" if near else f"known keys here: {', '.join(known)}"
            notes.odd(f"unknown key {shown(key)}", (*path, key), fix)
