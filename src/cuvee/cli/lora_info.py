"""`cuvee lora info`: what an adapter is, from its config and headers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cuvee.options import MergeOptions

if TYPE_CHECKING:
    from cuvee.adapters.facts import AdapterFacts


@click.command()
@click.argument("adapter")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.option("--transformers-cache", metavar="PATH", help="Folder for downloaded models.")
def info(adapter: str, as_json: bool, transformers_cache: str | None) -> None:
    """Show what ADAPTER (a path, or a Hub id with or without @revision) is, and what it changes.

    Only its config and headers are read.
    """
    from cuvee import inspection

    facts = inspection.adapter_facts(adapter, MergeOptions(transformers_cache=transformers_cache))
    if as_json:
        click.echo(json.dumps(asdict(facts), indent=2))
    else:
        _show(facts)


def _show(facts: AdapterFacts) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cuvee.cli.report import size

    console = Console(highlight=False)
    console.print(f"[bold]{escape(facts.name)}[/]: {facts.kind}", soft_wrap=True)
    console.print(f"  trained on {escape(facts.base_model or 'a base that it does not name')}", soft_wrap=True)
    console.print(f"  {facts.parameters:,} parameters, {size(facts.size)} in {', '.join(facts.dtypes)}")
    table = Table(box=box.SIMPLE)
    for heading in ("module", "count", "layers", "rank", "scaling", "shape"):
        table.add_column(heading, justify="right" if heading == "count" else "left")
    for group in facts.groups:
        shapes = ", ".join("×".join(map(str, shape)) for shape in group.shapes[:3])
        scalings = _some([f"{value:g}" for value in group.scalings])
        table.add_row(escape(group.name), str(group.count), _runs(group.layers), _some(group.ranks), scalings, shapes)
    if facts.groups:
        console.print(table)
    for name, shape in facts.whole:
        console.print(f"  whole: {escape(name)} {list(shape)}", soft_wrap=True)
    if facts.tokens:
        console.print(f"  rows of {facts.tokens} tokens replaced")


def _some(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")


def _runs(numbers: Sequence[int]) -> str:
    """Numbers as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
