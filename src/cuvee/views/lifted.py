"""A location seen as if one of its folders were at the top: early sentence-transformers kept the model in one.

`0_Transformer` (or `0_BERT`) held config, weights and tokenizer; since version 2 they lie beside `modules.json`, whose
first path is empty. Such a checkpoint is read, and goes out, as today's are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from cuvee.tensors.location import Location

_MODULES = "modules.json"
_MOST_BYTES = 1 << 20
_WEIGHTS = (".safetensors", ".bin")


def lifted(location: Location) -> Location:
    """The location with its first module's folder at the top, if the model lies there; itself if not."""
    folder = model_folder(location)
    if not folder:
        return location
    modules = _modules(location.read(_MODULES, 0, _MOST_BYTES))
    text = json.dumps([{**modules[0], "path": ""}, *modules[1:]], indent=2).encode()
    return _Lifted(location, folder + "/", {_MODULES: text})


def model_folder(location: Location) -> str:
    """The folder that holds the model of an early sentence-transformers checkpoint; empty for all others."""
    files = location.sizes()
    if not 0 < files.get(_MODULES, 0) < _MOST_BYTES or any(_is_weights(name) for name in files):
        return ""
    modules = _modules(location.read(_MODULES, 0, files[_MODULES]))
    path = modules[0].get("path") if modules else None
    folder = path.strip("/") if isinstance(path, str) else ""
    held = [name.removeprefix(folder + "/") for name in files if folder and name.startswith(folder + "/")]
    return folder if "config.json" in held and any(_is_weights(name) for name in held) else ""


def _modules(text: bytes) -> list[dict[str, Any]]:
    """The modules listed; none if the text is no such list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(each, dict) for each in found) else []


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(_WEIGHTS)


class _Lifted(Location):
    """The files of `below`, those of `folder` at the top, and `texts` in place of some."""

    def __init__(self, below: Location, folder: str, texts: dict[str, bytes]) -> None:
        self._below = below
        self._folder = folder
        self._texts = texts
        self.identity = below.identity

    @cached_property
    def _places(self) -> dict[str, str]:
        files = self._below.sizes()
        inside = {name.removeprefix(self._folder): name for name in files if name.startswith(self._folder)}
        return {**{name: name for name in files if not name.startswith(self._folder)}, **inside}

    @cached_property
    def _written(self) -> Path:
        folder = tempfile.mkdtemp(prefix="cuvee-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def sizes(self) -> dict[str, int]:
        """Sizes of the files by the names they are seen under."""
        files = self._below.sizes()
        own = {name: len(text) for name, text in self._texts.items()}
        return {name: files[place] for name, place in self._places.items()} | own

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""
        if name in self._texts:
            return self._texts[name][start:stop]
        return self._below.read(self._places.get(name, name), start, stop)

    def link_target(self, name: str) -> Path | None:
        """Where a file lies if it is a link out of the checkpoint."""
        return None if name in self._texts else self._below.link_target(self._places.get(name, name))

    def fetch(self, name: str, advance: Callable[[int], None] | None = None) -> Path:
        """A local path of a file."""
        if name in self._texts:
            path = self._written / name
            path.write_bytes(self._texts[name])
            return path
        return self._below.fetch(self._places.get(name, name), advance)

    def uri(self, name: str) -> str:
        """The name under which plans speak of a file: that of the place it really lies in."""
        return self._below.uri(self._places.get(name, name))
