"""Which keys a recipe may have where, and what a key that stands elsewhere was probably meant to be.

mergekit ignores unknown keys silently, so published recipes contain many. Each becomes a warning here that says what
the key does not do, and most say what to write instead. Values are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec
from cuvee.recipe.notes import Notes, nearest, shown
from cuvee.recipe.yaml_marks import Path

KEYS: dict[str, tuple[str, ...]] = {
    "recipe": (
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "dtype",
        "out_dtype",
        "parameters",
        "tokenizer",
        "tokenizer_source",
        "chat_template",
        "only",
        "missing",
    ),
    "module": ("slices", "models", "parameters"),
    "slice": ("sources", "base_model", "parameters", "residual_weight"),
    "source": ("model", "layer_range", "parameters"),
    "model": ("model", "parameters"),
    "tokenizer": ("source", "tokens", "pad_to_multiple_of"),
}
MISSING = ("error", "base", "skip")
"""What may happen to tensors that only some models have."""
_HAVE_PARAMETERS = ("recipe", "module", "slice", "source", "model")
_SILENT = ("name", "int8_mask", "normalize")
_WITHOUT_EFFECT = {
    "random_seed": "give the seed on the command line: --random-seed N",
    "dare_linear": "write `merge_method: dare_linear`",
    "dare_density": "use the parameter density of dare_ties or dare_linear",
    "dare_epsilon": "use the parameter epsilon of della or della_linear",
}
_OWNER = {
    "layer_range": "in an entry of a slice's sources",
    "sources": "in an entry of slices",
    "residual_weight": "in an entry of slices",
    **{key: "at the top of the recipe" for key in KEYS["recipe"] if key not in ("parameters", "models", "slices")},
}


def check_keys(data: Mapping[str, Any], level: str, path: Path, spec: MethodSpec, notes: Notes) -> None:
    """Notes every key of `data` that its level does not know, with what was probably meant."""
    known = KEYS[level]
    parameters = tuple(spec.parameters) if level in _HAVE_PARAMETERS else ()
    for key in data:
        here = (*path, key)
        if key in known or key == "int8_mask":
            continue
        if key in parameters:
            notes.odd(
                f"{key} stands beside `parameters`, not in it, and has no effect",
                here,
                f"indent it below `parameters:`, or write `parameters: {{{key}: {_brief(data[key])}}}`",
                meant=key,
            )
        elif key in _SILENT:
            continue
        elif level == "model" and key == "layer_range":
            notes.odd(
                "layer_range has no effect under models: all layers are merged",
                here,
                "list the models as `sources` of `slices` to choose layers",
            )
        elif key in _WITHOUT_EFFECT:
            notes.odd(f"{key} has no effect here", here, _WITHOUT_EFFECT[key])
        elif key in _OWNER:
            notes.odd(f"{key} has no effect here", here, f"it belongs {_OWNER[key]}")
        else:
            near = nearest(key, (*known, *parameters))
            fix = f"did you mean {near}?" if near else f"known keys here: {', '.join(known)}"
            notes.odd(f"unknown key {shown(key)}", here, fix, meant=near)


def check_parameter_name(name: Any, path: Path, spec: MethodSpec, notes: Notes) -> None:
    """Notes a parameter that the method does not have, naming the methods that do, or the parameter that was meant."""
    if name in _SILENT:
        return
    if name in _WITHOUT_EFFECT:
        notes.odd(f"{name} has no effect here", path, _WITHOUT_EFFECT[name])
        return
    if name in _OWNER:
        notes.odd(
            f"{name} is no parameter and has no effect here",
            path,
            f"it belongs {_OWNER[name]}; check its indentation",
        )
        return
    owners = [method for method in method_names() if name in get_method(method).parameters]
    if owners:
        verb = "has" if len(owners) == 1 else "have"
        notes.odd(
            f"{spec.name} has no parameter {name!r}, so it has no effect",
            path,
            f"{', '.join(owners)} {verb} it",
        )
        return
    near = nearest(name, spec.parameters)
    own = ", ".join(spec.parameters) or "none"
    fix = f"did you mean {near}?" if near else f"{spec.name} has these: {own}"
    notes.odd(f"unknown parameter {shown(name)}", path, fix, meant=near)


def _brief(value: Any) -> str:
    return "..." if isinstance(value, (list, Mapping)) else shown(value)
