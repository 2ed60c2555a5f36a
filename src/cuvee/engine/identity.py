"""What the bytes of a merge depend on, as data that can be written down and compared with a later run's.

Two runs of equal identity write the same bytes, so one may go on where the other stopped. What was done already is not
known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cuvee.engine.execute import EngineSettings
from cuvee.errors import CheckpointError
from cuvee.methods.registry import get_method
from cuvee.planning.ops import Plan

Identity = dict[str, Any]


def identity_of(plan: Plan, recipe_text: str, locate: Mapping[str, Path], settings: EngineSettings) -> Identity:
    """All that the bytes of the output depend on, as JSON data.

    Args:
        plan: what will be done.
        recipe_text: the recipe, so that a change of it can be told by name.
        locate: the local path of every file that the plan reads.
        settings: the kind of device and whether values may be not finite; nothing else in them changes a byte.

    """
    return {
        "version": plan.version,
        "libraries": {module.__name__: module.__version__ for module in (np, ml_dtypes)},
        "device": _kinds(settings.devices),
        "allow_nonfinite": settings.allow_nonfinite,
        "recipe": _digest(recipe_text),
        "models": {model.identity: model.fingerprint for model in plan.models},
        "files": {uri: state for uri, path in sorted(locate.items()) if (state := _state(uri, path))},
        "methods": {name: _source_of(name) for name in sorted(_methods(plan))},
        "plan": _digest((plan.ops, plan.shards, plan.seed)),
    }


def difference(before: Identity, now: Identity) -> str | None:
    """Why a run of identity `now` cannot go on where one of identity `before` stopped; None if it can."""
    for key, what in _SINGLE.items():
        if before.get(key) != now[key]:
            return f"{what} is {now[key]} now and was {before.get(key)}"
    for key, what in _MANY.items():
        earlier = before.get(key) or {}
        if changed := [name for name in {**earlier, **now[key]} if earlier.get(name) != now[key].get(name)]:
            return f"{what.format(changed[0])} changed"
    if before.get("recipe") != now["recipe"]:
        return "the recipe changed"
    if before.get("allow_nonfinite") and not now["allow_nonfinite"]:
        return "--allow-nonfinite was given then, and is not now"
    return "an option that changes the output was changed" if before.get("plan") != now["plan"] else None


_SINGLE = {"version": "Cuvee's version", "device": "the kind of device"}
_MANY = {"libraries": "the installed {}", "files": "{}", "models": "the model {}", "methods": "the code of method {}"}


def refuse_changed_files(identity: Identity, locate: Mapping[str, Path]) -> None:
    """Nothing, if the inputs are still what they were when `identity` was taken.

    A file that is gone by now was read whole; one that was written to may have been read half before, half after.

    Raises:
        CheckpointError: if one was written to.

    """
    for uri, before in identity["files"].items():
        now = _state(uri, locate[uri])
        if now is not None and now != before:
            raise CheckpointError(
                f"{uri} was changed while it was being merged",
                expected=f"size and time {before}",
                found=f"{now}",
                fix="run the same command again when nothing writes to it any more",
                file=uri,
            )


def _state(uri: str, path: Path) -> list[int] | None:
    """Size and time of the last change; of a file of the Hub, whose commit says what it is, the size; None if gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_size] if uri.startswith("hf://") else [found.st_size, found.st_mtime_ns]


def _kinds(devices: str) -> str:
    """The kinds of device, without their numbers: two of one kind compute alike."""
    return ",".join(sorted({part if part.startswith("torch:") else part.split(":")[0] for part in devices.split(",")}))


def _methods(plan: Plan) -> set[str]:
    """The names of all methods that act in a plan, those inside derivations among them."""
    inner = (op.parameters.get("method") for op in plan.ops if op.derivation is not None)
    return {str(name) for name in (*(op.method for op in plan.ops), *inner) if name}


def _source_of(method: str) -> str:
    """A hash of the files that a method is written in: methods of other people change without our version."""
    spec = get_method(method)
    codes = [getattr(function, "__code__", None) for function in (spec.apply, spec.prepare)]
    paths = sorted({Path(code.co_filename) for code in codes if code is not None})
    return _digest(tuple(path.read_bytes() for path in paths if path.is_file()))


def _digest(value: Any) -> str:
    parts: list[bytes] = []
    _spell(value, parts.append)
    return blake2b(b"".join(parts), digest_size=16).hexdigest()


def _spell(value: Any, put: Callable[[bytes], None]) -> None:
    """Spells a value out, so that equal values give the same bytes and others something else."""
    kind = type(value)
    if kind is str:
        text = value.encode()
        put(b"str:%d:%s" % (len(text), text))
    elif kind is int:
        put(b"int:%d," % value)
    elif kind is tuple:
        put(b"(%d:" % len(value))
        for part in value:
            _spell(part, put)
    elif is_dataclass(kind):
        put(kind.__name__.encode())
        put(b"(")
        for name in _field_names(kind):
            _spell(getattr(value, name), put)
    else:
        _spell_other(value, put)


def _spell_other(value: Any, put: Callable[[bytes], None]) -> None:
    if value is None or isinstance(value, (str, int, float, bytes, Path)):
        text = repr(value).encode()
        put(b"%s:%d:%s" % (type(value).__name__.encode(), len(text), text))
    elif isinstance(value, np.ndarray):
        _spell((value.dtype.str, value.shape), put)
        put(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _spell(tuple(sorted(value.items())), put)
    elif isinstance(value, Iterable):
        _spell(tuple(value), put)
    else:
        raise TypeError(f"a plan holds a {type(value).__name__}, which cannot be told from another of its kind")


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
