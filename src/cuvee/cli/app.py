"""The commands of `cuvee`: arguments in, one call of the API, one rendering of what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import cuvee
from cuvee.cli.lora import lora
from cuvee.cli.option_reader import build, options_of
from cuvee.options import MergeOptions

_EXAMPLES = """\b
Examples:
  cuvee demo                     merge three tiny experts, see what they can do
  cuvee plan recipe.yml          what a merge will read, write and take
  cuvee merge recipe.yml out     do it
  cuvee check out                whether the result is complete, finite and loads
  cuvee layout path/to/model     what a checkpoint holds
  cuvee methods ties             what a method does and its parameters
  cuvee vocab first second       how two models' tokenizers differ
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(cuvee.__version__, prog_name="cuvee")
def app() -> None:
    """Merge model checkpoints: complete, exact, small, fast and pleasant."""


@app.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@options_of(MergeOptions)
@click.option("-v", "--verbose", is_flag=True, help="Name each tensor as it is done.")
@click.option("--quiet/--no-quiet", default=False, help="Print nothing but warnings and errors.")
@click.option("--log-json", type=click.Path(path_type=Path), metavar="FILE", help="Log every event as a line of JSON.")
def merge(recipe: Path, out: Path, verbose: bool, quiet: bool, log_json: Path | None, **values: Any) -> None:
    """Merge the models that RECIPE (YAML) names into the directory OUT.

    Recipes are mergekit's. OUT appears only when it is complete: weights, config, tokenizer and card. A merge that was
    interrupted goes on where it was when the same command is given again.
    """
    from cuvee import api
    from cuvee.cli import notes
    from cuvee.cli.bars import watcher
    from cuvee.cli.event_log import logged

    options = build(MergeOptions, values)
    notes.meaningless(options.meaningless)
    with watcher(verbose=verbose, quiet=quiet) as drawn, logged(drawn, log_json) as progress:
        done = api.merge(recipe, out, options, progress)
    notes.warnings(done.warnings)
    if not quiet:
        from cuvee.cli.report import report

        report(done)


@app.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), default=Path())
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@click.option("--ops", is_flag=True, help="List every output tensor with its sources and parameters.")
@click.option(
    "--machine", metavar="SPEC", help="Estimate for another machine: read=3GB/s,write=1GB/s,cores=64,nodes=8."
)
@click.option(
    "--probe/--no-probe", default=True, help="Measure this machine for two seconds, to estimate time and memory."
)
@options_of(MergeOptions)
def plan(recipe: Path, out: Path, as_json: bool, ops: bool, machine: str | None, probe: bool, **values: Any) -> None:
    """Show what merging RECIPE will read, write and take, without doing it.

    OUT, if given, is where free disk space is looked up, and told if it is one of RECIPE's inputs.
    """
    from cuvee import api
    from cuvee.cli import notes, show
    from cuvee.planning.ops import plan_to_json

    options = build(MergeOptions, values)
    opened = api.open_recipe(recipe, options)
    if as_json:
        click.echo(plan_to_json(opened.plan))
        return
    show.plan(opened.plan, api.cost(opened, out, options, machine=machine, probe=probe), with_ops=ops)
    notes.warnings((*opened.plan.warnings, *api.replaced_inputs(opened, out)))


@app.command()
@click.argument("checkpoint")
@click.option("--json", "as_json", is_flag=True, help="Print the layout as JSON.")
def layout(checkpoint: str, as_json: bool) -> None:
    """Show what CHECKPOINT (a path or Hub id) holds: stacks, layers, shapes, ties and vocabulary.

    Only headers and config are read.
    """
    import dataclasses
    import json

    from cuvee import inspection
    from cuvee.cli import show_layout

    tree = inspection.describe(checkpoint)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(tree), indent=2))
    else:
        show_layout.layout(tree)


@app.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Read headers and small files only: no weights, no transformers.")
@click.option("--generate", "prompt", metavar="PROMPT", help="Let the model go on with PROMPT, and show what it says.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(out: Path, quick: bool, prompt: str | None, as_json: bool) -> None:
    """Check the checkpoint in OUT: complete, consistent, finite, loadable. Exit code 2 if something is wrong.

    Whether it loads is asked of transformers, if that is installed.
    """
    import dataclasses
    import json

    from cuvee import inspection
    from cuvee.cli import show_check

    report = inspection.check(out, quick=quick, prompt=prompt)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in report.findings], indent=2))
    else:
        show_check.check(report)
    if not report.ok:
        raise click.exceptions.Exit(2)


@app.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the specs as JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain the one called NAME."""
    from cuvee.cli import show
    from cuvee.methods.registry import get_method, method_names

    specs = [get_method(name)] if name else [get_method(each) for each in method_names()]
    if as_json:
        click.echo(show.methods_json(specs))
    elif name:
        show.method(specs[0])
    else:
        show.methods(specs)


@app.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, every token that differs included.")
@click.option("--transformers-cache", metavar="PATH", help="Folder for downloaded models.")
def vocab(first: str, second: str, as_json: bool, transformers_cache: str | None) -> None:
    """Compare the vocabularies of the models FIRST and SECOND.

    Sizes, overlap, what differs, special tokens and chat templates, side by side.
    """
    from cuvee import inspection
    from cuvee.cli import vocabulary

    report = inspection.compare_vocabularies(first, second, MergeOptions(transformers_cache=transformers_cache))
    if as_json:
        click.echo(vocabulary.report_json(report))
        return
    from rich.console import Console

    vocabulary.report(report, Console())


@app.command()
@click.option("--out", type=click.Path(path_type=Path), help="Keep the merged models in this folder.")
def demo(out: Path | None) -> None:
    """Merge three tiny experts with three methods, and test which skills each merge has."""
    from rich.console import Console

    from cuvee.demo.run import run_demo

    run_demo(out, Console())


app.add_command(lora)
