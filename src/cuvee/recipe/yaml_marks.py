"""YAML text as plain data, with the line that every value came from.

The parser underneath is PyYAML's safe one; this module adds line numbers and refuses what a recipe never needs and an
attacker might: duplicate keys, foreign tags, explosions of aliases, bottomless nesting. What the keys mean is not known
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from cuvee.errors import RecipeError

Path = tuple[Any, ...]
"""Where a value stands: the keys and indexes that lead to it, like `("models", 0, "parameters", "weight")`."""

MAX_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000
_MAX_NUMBER_LENGTH = 400
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"


@dataclass(frozen=True)
class Marks:
    """The places of values: the file, and the line (from 1) of each path. No lines for recipes made in Python."""

    file: str
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """The line of `path`, or of the nearest thing around it that the file has."""
        while path not in self.lines:
            if not path:
                return None
            path = path[:-1]
        return self.lines[path]

    def where(self, path: Path) -> str:
        """The place in words: `recipe.yml:7 (models[1].parameters.weight)`."""
        line, inside = self.line(path), path_text(path)
        place = self.file if line is None else f"{self.file}:{line}"
        return f"{place} ({inside})" if inside else place


def path_text(path: Path) -> str:
    """`path` as people write it: `models[1].parameters.weight`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).lstrip(".")[:200]


def load_yaml(text: str, file: str) -> tuple[Any, Marks]:
    """The plain data that `text` spells, with the line of every value.

    Scalars are read as YAML 1.1 (and `yaml.safe_load`) reads them, save that dates stay text. Merge keys (`<<`) are
    resolved.

    Args:
        text: one YAML document.
        file: what to call it in messages.

    Raises:
        RecipeError: for text that is not one well-formed, harmless document; facts `file` and `line`.
    """
    text = text.removeprefix("\ufeff")
    try:
        if len(text.encode()) > MAX_BYTES:
            raise RecipeError("the recipe is too large", expected="at most 16 MiB", where=file, file=file, line=None)
        _check_extent(text, file)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from None
    except yaml.YAMLError as error:
        raise RecipeError(
            "the recipe is not YAML", found=str(error).split("\n")[0], where=file, file=file, line=None
        ) from None
    except UnicodeEncodeError as error:
        raise _at("the recipe holds text that is not Unicode", file, text.count("\n", 0, error.start) + 1) from None
    walk = _Walk(file)
    data = None if root is None else walk.value(root, (), 1)
    return data, Marks(file, walk.lines)


def _check_extent(text: str, file: str) -> None:
    """Refuses too many or too deeply nested nodes before the recursive composer sees them."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _at(f"the recipe nests deeper than {MAX_DEPTH} levels", file, line)
        if nodes > MAX_NODES:
            raise _at(f"the recipe has more than {MAX_NODES:,} values", file, line)


def _at(what: str, file: str, line: int, **details: Any) -> RecipeError:
    return RecipeError(what, where=f"{file}:{line}", file=file, line=line, **details)


def _syntax_error(error: yaml.MarkedYAMLError, file: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "not YAML"
    fixes = {
        "mapping values": "check the indentation, and quote text that contains ': '",
        "could not find expected ':'": "check the indentation, and that every key has a ':' after it",
        "did not find expected key": "check the indentation: keys of one mapping start in the same column",
        "did not find expected '-' indicator": "check the indentation: entries of one list start in the same column",
        "tab character": "indent with spaces, not tabs",
        "start any token": "indent with spaces, not tabs; quote text that starts with @, %, ` or *",
        "found undefined alias": "quote text that starts with *",
        "expected a single document": "one file holds one recipe: remove the lines from the second '---' on",
    }
    fix = next((text for key, text in fixes.items() if key in f"{problem} {error.context}"), None)
    return _at(f"the recipe is not YAML: {problem}", file, mark.line + 1 if mark else 1, fix=fix)


class _Walk:
    """One pass over the node graph that expands aliases, within bounds."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self._nodes = self._characters = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._count(node, depth)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._foreign_tag(node)

    def _count(self, node: yaml.Node, depth: int) -> None:
        self._nodes += 1
        if isinstance(node, yaml.ScalarNode):
            self._characters += len(node.value)
        if self._nodes > MAX_NODES or self._characters > MAX_BYTES or depth > MAX_DEPTH:
            raise _at(
                "the recipe's aliases expand without end",
                self.file,
                node.start_mark.line + 1,
                expected=f"at most {MAX_NODES:,} values and {MAX_DEPTH} levels once aliases (*name) are replaced",
                fix="write out what the aliases stand for",
            )

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                merged.update(self._merged(value, path, depth))
        own: dict[Any, Any] = {}
        first: dict[Any, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _at("a key must be a single word, not a list or a mapping", self.file, line)
            name = self._scalar(key)
            if name in own:
                raise _at(
                    f"key {str(name)[:80]!r} is given twice",
                    self.file,
                    line,
                    found=f"lines {first[name]} and {line}",
                    fix="remove one of them; plain YAML readers silently keep only the last",
                )
            first[name] = line
            here = (*path, name)
            self.lines[here] = line
            own[name] = self.value(value, here, depth + 1)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Path, depth: int) -> dict[Any, Any]:
        """What `<<: *alias` or `<<: [*first, *second]` brings in; earlier ones win."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[Any, Any] = {}
        for part in reversed(parts):
            self._count(part, depth + 1)
            if not isinstance(part, yaml.MappingNode):
                raise _at("'<<' merges mappings only", self.file, part.start_mark.line + 1)
            merged.update(self._mapping(part, path, depth + 1))
        return merged

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value", "merge"):
            return node.value
        if kind not in ("null", "bool", "int", "float"):
            raise self._foreign_tag(node)
        if kind in ("int", "float") and len(node.value) > _MAX_NUMBER_LENGTH:
            raise _at("a number is too long", self.file, node.start_mark.line + 1, found=f"{len(node.value)} digits")
        try:
            return getattr(self._scalars, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise _at(f"{node.value[:80]!r} is no {kind}", self.file, node.start_mark.line + 1) from None

    def _foreign_tag(self, node: yaml.Node) -> RecipeError:
        tag = node.tag.replace(_TAG, "!!")[:80]
        return _at(
            f"tag {tag!r} has no meaning in a recipe",
            self.file,
            node.start_mark.line + 1,
            expected="plain text, numbers, true/false, lists and mappings",
            fix="remove the tag, or quote text that starts with '!'",
        )
