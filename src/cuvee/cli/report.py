"""What is said at the end of a merge, and how sizes and times are spelled; loads no library for tables."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cuvee.api import MergeReport


def size(count: float) -> str:
    """Bytes with a unit of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def report(done: MergeReport) -> None:
    """The end of a merge."""
    speed = size((done.bytes_read + done.bytes_written) / max(done.seconds, 1e-9))
    memory = f", peak memory {size(done.peak_memory)}" if done.peak_memory else ""
    dropped = f", {len(done.dropped)} dropped" if done.dropped else ""
    resumed = f" ({done.resumed} by an earlier run)" if done.resumed else ""
    counts = f"{done.merged} tensors merged, {done.copied} copied{resumed}{dropped}"
    click.echo(f"{click.style('✓', fg='green', bold=True)} {done.out}: {counts}")
    click.echo(
        f"  read {size(done.bytes_read)}, wrote {size(done.bytes_written)} in {done.seconds:.2f} s ({speed}/s){memory}"
    )
    for decision in done.decisions:
        click.echo(f"  {named(decision.tensors)}: {decision.rule}")


def named(tensors: Sequence[str]) -> str:
    """A tensor's name, or how many there are and the first."""
    return tensors[0] if len(tensors) == 1 else f"{len(tensors)} tensors ({tensors[0]}, ...)"
