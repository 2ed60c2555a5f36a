"""Draws a checkpoint's layout as a tree."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.tree import Tree as Drawing

from cuvee.cli.show import terminal
from cuvee.layout.tree import Row, Tree
from cuvee.tensors.dtypes import name_of


def layout(tree: Tree) -> None:
    """The tree of a checkpoint."""
    facts = [*tree.architectures, f"{_count(tree.parameters)} parameters", ", ".join(map(name_of, tree.dtypes))]
    console = terminal()
    console.print(escape(", ".join(facts)), soft_wrap=True)
    root = Drawing(f"[bold]{escape(tree.name)}[/]", guide_style="dim")
    _add(root, tree.before, tree.dtypes)
    for stack in tree.stacks:
        counted = f"  [dim]{escape('; '.join(stack.counted_by))}[/]" if stack.counted_by else ""
        branch = root.add(f"[bold]{escape(stack.name)}[/]  {stack.layers} layers{counted}")
        for group in stack.groups:
            word = "layer" if group.count == 1 else "layers"
            note = f"  [yellow]{group.note}[/]" if group.note else ""
            _add(branch.add(f"{word} {group.numbers.replace(',', ', ')}{note}"), group.rows, tree.dtypes)
    _add(root, tree.after, tree.dtypes)
    console.print(root)


def _add(branch: Drawing, rows: Iterable[Row], dtypes: tuple[str, ...]) -> None:
    for row in rows:
        shape = escape("[" + ", ".join(map(str, row.shape)) + "]")
        times = f" × {row.count}" if row.count > 1 else ""
        dtype = f" {name_of(row.dtype)}" if len(dtypes) > 1 else ""
        notes = f"  [cyan]{escape('; '.join(row.notes))}[/]" if row.notes else ""
        branch.add(f"{escape(row.name)}  [green]{shape}[/]{times}{dtype}{notes}")


def _count(parameters: int) -> str:
    scale = next((scale for scale in _UNITS if parameters >= scale), 1)
    return f"{parameters / scale:.4g}{_UNITS.get(scale, '')}"


_UNITS = {10**9: " B", 10**6: " M", 10**3: " k"}
