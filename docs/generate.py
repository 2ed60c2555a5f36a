"""Writes the pages that are made from code: commands.md from the command line, methods.md from the method specs.

    python docs/generate.py            write them
    python docs/generate.py --check    fail if a page is not what would be written

What a command does or a method computes is told in the code alone; this script only lays it out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import click

from cuvee.cli.app import app
from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec, Parameter
from cuvee.options import MergeOptions

HERE = Path(__file__).parent
_MERGE_OPTIONS = frozenset(item.name for item in fields(MergeOptions))
_MADE = "<!-- Made by docs/generate.py from the code; change the code and run `make docs`. -->\n"

_COMMANDS = """
# Commands

Every command answers `--help`. Exit codes: 0 done, 2 something you can mend, 1 a fault of Cuvee's own, 130 interrupted.
Results go to standard output; progress, warnings and errors go to standard error.

`mergekit-yaml CONFIG OUT` is `cuvee merge CONFIG OUT` under the name that existing scripts know.

Sizes are numbers with a unit of 1000 (`500M`, `5B`, `2GB`) or of 1024 (`1GiB`).
"""

_METHODS = """
# Methods

`cuvee methods` lists them, `cuvee methods NAME` explains one and shows a recipe, `cuvee methods --json` tells programs.

In the formulas W_i are the models' tensors, W_0 is the base model's, d_i = W_i - W_0 is what model i learned (its task
vector), w_i is its weight, p_i its density and n the number of elements. A parameter that is *per model* may stand
under a model's own `parameters` or under the recipe's, for all models. [recipes.md](recipes.md) tells how values may
vary over layers and tensors; [adding-a-method.md](adding-a-method.md) how to add a method.
"""


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the pages; the exit code."""
    stale = []
    for name, text in pages().items():
        page = HERE / name
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{name}")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """The text of every page made from code, by file name."""
    return {
        "commands.md": _page(_COMMANDS, (_command(name, command) for name, command in sorted(_commands(app)))),
        "methods.md": _page(_METHODS, (_method(get_method(name)) for name in method_names())),
    }


def _page(opening: str, sections: Iterable[str]) -> str:
    return "\n".join([_MADE + opening, *sections])


def _commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, those of groups too."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"cuvee {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    # click marks with \f where the text for people ends, and with \b paragraphs that keep their lines.
    text = inspect.cleandoc((command.help or "").split("\f")[0].replace("\b\n", ""))
    options = [each for each in command.params if isinstance(each, click.Option)]
    parts = [f"## cuvee {name}", f"```text\n{usage}\n```", text]
    told = _MERGE_OPTIONS if name != "merge" else frozenset()
    own = [option for option in options if option.name not in told]
    if len(own) < len(options):
        options = own
        parts.append("Takes the options of `cuvee merge`, and these:")
    if shown := [option for option in options if not option.hidden]:
        parts.append(_table(("option", "meaning", "default"), map(_option, shown)))
    if hidden := [option for option in options if option.hidden]:
        parts.append("For old command lines these are taken too:")
        parts.append(_table(("option", "meaning"), (_option(option)[:2] for option in hidden)))
    return "\n\n".join(parts) + "\n"


def _option(option: click.Option) -> tuple[str, str, str]:
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    names = [f"`{name}{value}`" for name in (*option.opts, *option.secondary_opts)]
    default = option.default
    if option.is_flag and option.secondary_opts:
        shown = "on" if default is True else "off"
    else:
        shown = f"`{default}`" if isinstance(default, (int, str)) and not isinstance(default, bool) else ""
    return ", ".join(names), option.help or "", shown


def _method(spec: MethodSpec) -> str:
    text = spec.doc.split("\nArgs:")[0].strip().removeprefix(spec.summary).strip()
    parts = [f"## {spec.name}", spec.summary, f"Takes {_inputs(spec)}.", text]
    if spec.parameters:
        parts.append(_table(("parameter", "type", "default", "meaning"), map(_parameter, spec.parameters.values())))
    if spec.reference:
        parts.append(f"Reference: {spec.reference}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _inputs(spec: MethodSpec) -> str:
    fewest, most = spec.min_models, spec.max_models
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most else f"{fewest} or more"
    base = {"none": "", "required": "a base model and ", "optional": "a base model if there is one, and "}[spec.base]
    return f"{base}{count} {'model' if most == 1 else 'models'}"


def _parameter(parameter: Parameter) -> tuple[str, str, str, str]:
    kind = " or ".join(f"`{choice}`" for choice in parameter.choices) or parameter.kind.__name__
    default = "" if parameter.default is None else f"`{str(parameter.default).lower()}`"
    return (
        f"`{parameter.name}`",
        f"{kind}, per model" if parameter.per_model else kind,
        "required" if parameter.required else default,
        parameter.help,
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield _row(headings)
        yield _row(["---"] * len(headings))
        yield from map(_row, rows)

    return "\n".join(lines())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
