"""`cuvee demo`: merges the shipped experts in three ways and shows what each model can do.

The recipes lie beside this module, written as any user would write them. This module knows no merge method;
it asks `cuvee.api` for merges and `skills` for scores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from cuvee.demo import family, llama
from cuvee.demo.skills import SKILLS, accuracy

MERGES = ("linear", "task_arithmetic", "ties")
"""Names of the recipes, in the order in which they are run and shown."""
_SHOWN = "ties"

Scores = Mapping[str, float]
"""Skill -> share of its test questions answered exactly, from 0 to 1."""


def run_demo(out: Path | None, console: Console) -> None:
    """Merges the family by every recipe of `MERGES` and prints what base, experts and merges can do.

    Args:
        out: the folder for recipes and merged checkpoints; None makes a fresh one for temporary files.
        console: where to print.

    Raises:
        CuveeError: if a merge is refused, for instance because the disk is full.
    """
    out = out or Path(tempfile.mkdtemp(prefix="cuvee-demo-"))
    models = dict(family())
    console.print(f"Merging {len(SKILLS)} experts of a tiny Llama in {len(MERGES)} ways.\n")
    models |= {name: merge_family(name, out) for name in MERGES}
    console.print(score_table({name: scores(folder) for name, folder in models.items()}))
    console.print(f"\nThe recipe of [bold]{_SHOWN}[/bold]:\n")
    console.print(Syntax(recipe_text(_SHOWN, Path("family")).strip(), "yaml", background_color="default"))
    console.print("\nRecipes and merged checkpoints are in", style="bold", end=" ")
    console.print(str(out), soft_wrap=True, highlight=False, markup=False)


def merge_family(name: str, out: Path) -> Path:
    """The folder `out/name`: the family merged by the recipe `name`, which is written to `out/name.yml`."""
    from cuvee.api import merge
    from cuvee.options import MergeOptions

    out.mkdir(parents=True, exist_ok=True)
    recipe = out / f"{name}.yml"
    recipe.write_text(recipe_text(name, family()["base"].parent), encoding="utf-8")
    merge(recipe, out / name, MergeOptions(overwrite=True))
    return out / name


def recipe_text(name: str, folder: Path) -> str:
    """The recipe `name`, with the family's checkpoints in `folder`."""
    text = (Path(__file__).parent / "recipes" / f"{name}.yml").read_text(encoding="utf-8")
    # The placeholder stands in double quotes, where YAML reads JSON's escapes: any path can be filled in.
    return text.replace("{family}", json.dumps(folder.as_posix(), ensure_ascii=False)[1:-1])


def scores(folder: Path) -> Scores:
    """What the checkpoint in `folder` can do."""
    model = llama.load(folder)
    return {skill: accuracy(model, skill) for skill in SKILLS}


def score_table(results: Mapping[str, Scores]) -> Table:
    """One row for each model: its score on each skill and their mean, the best of every column in bold."""
    table = Table(title="Exact answers to held-out questions", title_justify="left")
    table.add_column("model")
    for heading in (*SKILLS, "mean"):
        table.add_column(heading, justify="right")
    rows = {name: [*told.values(), sum(told.values()) / len(told)] for name, told in results.items()}
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    for name, row in rows.items():
        cells = (_percent(value, best=value == top) for value, top in zip(row, best, strict=True))
        table.add_row(name, *cells, end_section=name in ("base", SKILLS[-1]))
    return table


def _percent(value: float, *, best: bool) -> str:
    return f"[bold green]{value:.1%}[/bold green]" if best else f"{value:.1%}"
