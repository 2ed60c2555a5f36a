"""`cuvee lora extract` and `cuvee lora merge`: arguments in, one call of the API, one rendering of what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.option_reader import build, options_of
from cuvee.lora.options import ExtractOptions
from cuvee.options import MergeOptions

if TYPE_CHECKING:
    from cuvee.lora_api import LoraReport


@click.command()
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--model", required=True, metavar="MODEL", help="The fine-tune: a path or Hub id.")
@click.option("--base-model", required=True, metavar="MODEL", help="The model that it was trained from.")
@click.option("--out-path", type=click.Path(path_type=Path), hidden=True, help="OUT, as mergekit has it.")
@options_of(ExtractOptions)
@options_of(MergeOptions)
@click.option("-v", "--verbose", is_flag=True, help="Name each tensor as it is done.")
@click.option("--quiet/--no-quiet", default=False, help="Print nothing but warnings and errors.")
def extract(
    out: Path | None, model: str, base_model: str, out_path: Path | None, verbose: bool, quiet: bool, **values: Any
) -> None:
    """Write what a fine-tune learned over its base as a PEFT adapter into the directory OUT.

    Matrices become low-rank factors, everything else that changed is saved whole, and README.md tells how close the
    adapter comes.
    """
    from cuvee import lora_api
    from cuvee.cli import notes
    from cuvee.cli.bars import watcher

    target = out or out_path
    if target is None or (out and out_path):
        raise click.UsageError("name one output directory OUT")
    extraction = build(ExtractOptions, values)
    options = build(MergeOptions, values)
    notes.meaningless(options.meaningless)
    with watcher(verbose=verbose, quiet=quiet) as progress:
        report = lora_api.extract_lora(model, base_model, target, extraction, options, progress)
    notes.warnings(report.extracted.warnings)
    if not quiet:
        _show(report)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@options_of(MergeOptions)
@click.option("-v", "--verbose", is_flag=True, help="Name each tensor as it is done.")
@click.option("--quiet/--no-quiet", default=False, help="Print nothing but warnings and errors.")
def merge(recipe: Path, out: Path, verbose: bool, quiet: bool, **values: Any) -> None:
    """Merge the LoRA adapters that RECIPE (YAML) names into one adapter in the directory OUT.

    `merge_method` is concat (the exact weighted sum), svd (that, cut to `parameters: {rank: N}`), linear, or any method
    that acts on changes, such as ties, in the `space` core, knots or factors. `base_model` is only needed where
    adapters hold different tensors whole and do not name their base themselves.
    """
    from cuvee import lora_api
    from cuvee.cli import notes
    from cuvee.cli.bars import watcher
    from cuvee.cli.report import size

    options = build(MergeOptions, values)
    notes.meaningless(options.meaningless)
    with watcher(verbose=verbose, quiet=quiet) as progress:
        report = lora_api.merge_lora(recipe, out, options, progress)
    notes.warnings(report.warnings)
    if not quiet:
        ranks = sorted(report.ranks.values()) or [0]
        whole = f", {report.whole} tensors whole" if report.whole else ""
        memory = f", peak memory {size(report.peak_memory)}" if report.peak_memory else ""
        click.echo(
            f"✓ {report.out}: {len(report.ranks)} modules, rank {ranks[0]} to {ranks[-1]}{whole}; "
            f"wrote {size(report.bytes_written)} in {report.seconds:.2f} s{memory}"
        )


def _show(report: LoraReport) -> None:
    """The end of an extraction: what was made, and error against rank."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cuvee.cli.report import size
    from cuvee.lora.curve import error_curve

    found = report.extracted
    console = Console(highlight=False)
    console.print(
        f"[bold green]✓[/] {escape(str(report.out))}: {len(found.decomposed)} matrices as factors, "
        f"{sum(each.whole for each in found.held)} tensors whole, {found.unchanged} unchanged",
        soft_wrap=True,
    )
    table = Table("rank at most", "relative error", "", "parameters", box=box.SIMPLE_HEAD)
    points = error_curve(found)
    for point in points:
        bar = "█" * round(30 * point.error / max(points[0].error, 1e-12))
        table.add_row(str(point.rank), f"{point.error:.4g}", bar, f"{point.parameters:,}")
    if points:
        console.print(table)
    memory = f", peak memory {size(report.peak_memory)}" if report.peak_memory else ""
    console.print(
        f"  relative error {found.error:.4g}; wrote {size(report.bytes_written)} in {report.seconds:.2f} s{memory}"
    )
