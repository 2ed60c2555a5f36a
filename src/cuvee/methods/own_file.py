"""Methods from a Python file that a recipe names: `merge_method: ./my_method.py:blend`.

Importing the file runs it, so callers ask for trust first. The file's decorators register its methods like any others.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from cuvee.errors import MethodError
from cuvee.methods.registry import get_method, methods_of
from cuvee.methods.spec import MethodSpec

_NAMED = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")
_files: dict[str, Path] = {}  # by the name of the module that a file became


def file_and_function(name: str) -> tuple[str, str] | None:
    """The file and the function that a recipe's `merge_method` names; None if it names a registered method."""
    found = _NAMED.fullmatch(name.strip())
    return (found["file"], found["function"]) if found else None


def files_of(methods: Iterable[str]) -> tuple[Path, ...]:
    """The files that these registered methods were loaded from, each once: what a worker process must load too."""
    modules = {get_method(name).apply.__module__ for name in methods}
    return tuple(file for module, file in _files.items() if module in modules)


def load_methods(path: Path) -> tuple[MethodSpec, ...]:
    """The methods that the file at `path` registers; runs the file.

    Raises:
        MethodError: if there is no such file, or it fails.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise MethodError(f"there is no file {path}", expected="the path of a Python file, from the recipe's folder on")
    name = f"cuvee_method_{blake2b(str(path).encode(), digest_size=8).hexdigest()}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise MethodError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except MethodError as error:
        raise error.at(str(path)) from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise MethodError(
            f"{path.name} could not be loaded",
            where=f"{path}:{line}" if line else str(path),
            found=f"{type(error).__name__}: {error}",
            fix=f"`python {path.name}` shows the whole story",
        ) from error
    _files[name] = path
    return methods_of(name)


def method_from_file(path: Path, function: str) -> MethodSpec:
    """The method that `function` of the file at `path` is; runs the file.

    Raises:
        MethodError: if the file cannot be loaded or has no such method.
    """
    specs = load_methods(path)
    for spec in specs:
        if function in (spec.apply.__name__, spec.name):
            return spec
    names = ", ".join(spec.apply.__name__ for spec in specs)
    raise MethodError(
        f"{path.name} has no merge method {function!r}",
        expected=names or "a function with the decorator merge_method",
        fix=f"name one of them: {path.name}:{specs[0].apply.__name__}"
        if specs
        else "put @merge_method(...) above it: docs/adding-a-method.md shows how",
        method=function,
    )
