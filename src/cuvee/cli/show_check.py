"""Draws what a check found as a table."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from cuvee.checking.findings import CheckReport
from cuvee.cli.show import terminal

_MARKS = {"ok": "[green]✓[/]", "problem": "[bold red]✗[/]", "note": "[yellow]![/]", "skipped": "[dim]-[/]"}


def check(report: CheckReport) -> None:
    """The findings, and a last line with the verdict."""
    table = Table("", "check", "finding", box=box.SIMPLE_HEAD)
    for finding in report.findings:
        table.add_row(_MARKS[finding.state], finding.check, escape(finding.text))
    console = terminal()
    console.print(table)
    if report.ok:
        console.print(f"[bold green]✓[/] {escape(str(report.path))} is sound", soft_wrap=True)
    else:
        count = len(report.problems)
        word = "problem" if count == 1 else "problems"
        console.print(f"[bold red]✗[/] {escape(str(report.path))} has {count} {word}", soft_wrap=True)
