"""Writes the pages that are made from code: commands.md from the command line, methods from their specs and docstrings.

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
from pictures import picture

from cuvee.cli.app import app
from cuvee.cli.show import example_recipe
from cuvee.methods.registry import get_method, method_names
from cuvee.methods.spec import MethodSpec, Parameter
from cuvee.methods.stages import STAGES
from cuvee.options import MergeOptions

HERE = Path(__file__).parent
_MERGE_OPTIONS = frozenset(item.name for item in fields(MergeOptions))
_USE = "Use it"
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

Each method has a page with its formula, its parameters, a recipe and a picture. `cuvee methods` lists them,
`cuvee methods NAME` explains one, `cuvee methods --json` tells programs. [choosing-a-method.md](choosing-a-method.md)
helps to choose; [adding-a-method.md](adding-a-method.md) tells how to add one.
"""

_NOTATION = """
In the formulas W_i are the models' tensors, W_0 is the base model's, d_i = W_i - W_0 is what model i learned (its task
vector), w_i is its weight, p_i its density and n the number of elements. A parameter that is *per model* may stand
under a model's own `parameters` or under the recipe's, for all models. [recipes.md](recipes.md) tells how values may
vary over layers and tensors.

## Stages

What a method merged of task vectors can be scaled before it is added to the base. Every method that needs a base and
merges task vectors takes these parameters beside its own:
"""


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the pages; the exit code."""
    stale = []
    for name, text in pages().items():
        page = HERE / name
        if "--check" not in arguments:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{name}")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """The text of every page and picture made from code, by file name."""
    specs = [get_method(name) for name in method_names()]
    return {
        "commands.md": _page(_COMMANDS, (_command(name, command) for name, command in sorted(_commands(app)))),
        "methods.md": _methods(specs),
        **{f"methods/{spec.name}.md": _method(spec) for spec in specs},
        **{f"methods/{spec.name}.svg": picture(spec) for spec in specs},
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
    # click remembers a command's help flags from the first context it meets: let that be the one it has in use.
    parent = click.Context(app, info_name="cuvee", **app.context_settings)
    context = click.Context(command, info_name=name, parent=parent)
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


def _methods(specs: Sequence[MethodSpec]) -> str:
    """All methods in a table, and what they have in common."""
    rows = [(f"[{spec.name}](methods/{spec.name}.md)", _inputs(spec), spec.summary) for spec in specs]
    stages = _table(("parameter", "type", "default", "meaning"), map(_parameter, STAGES.values()))
    return "\n".join([_MADE + _METHODS, _table(("method", "takes", "what it does"), rows), _NOTATION, stages, ""])


def _method(spec: MethodSpec) -> str:
    """One method's page: idea, formula, when to use it, picture, parameters, recipe, paper."""
    text = spec.doc.split("\nArgs:")[0].strip().removeprefix(spec.summary).strip().split("\n\n")
    uses = [part for part in text if part.startswith(_USE)]
    formula = [part for part in text if not part.startswith(_USE)]
    own = [parameter for name, parameter in spec.parameters.items() if name not in STAGES]
    parts = [f"# {spec.name}", spec.summary, f"Takes {_inputs(spec)}.", f"![{spec.name} at work]({spec.name}.svg)"]
    parts += ["## Formula", *formula, "[What the letters mean](../methods.md)."]
    parts += ["## When to use it", *uses]
    if own:
        parts += ["## Parameters", _table(("parameter", "type", "default", "meaning"), map(_parameter, own))]
    if len(own) < len(spec.parameters):
        parts.append("And the [stages](../methods.md#stages) `lines` and `match_norm`.")
    parts += ["## Recipe", f"```yaml\n{example_recipe(spec)}\n```"]
    if spec.reference:
        parts += ["## Reference", f"{spec.reference}."]
    return _MADE + "\n" + "\n\n".join(parts) + "\n"


def _inputs(spec: MethodSpec) -> str:
    fewest, most = spec.min_models, spec.max_models
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most else f"{fewest} or more"
    base = {"none": "", "required": "a base model and ", "optional": "a base model if there is one, and "}[spec.base]
    return f"{base}{count} {'model' if most == 1 else 'models'}"


def _parameter(parameter: Parameter) -> tuple[str, str, str, str]:
    kind = " or ".join(f"`{choice}`" for choice in parameter.choices) or parameter.kind.__name__
    kind = " or ".join([kind, *(f"`{word}`" for word in parameter.words)])
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
