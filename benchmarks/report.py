"""Measured runs as a table: on the terminal, in Markdown and in JSON. It measures nothing itself.

One row is one method run one way. Its figures are medians over the rounds, with the extremes of the wall time; its
ratio is the median over rounds of its wall time divided by plain Cuvee's in the same round, so that a slow minute of
the machine touches both sides alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from measure import Run
from recipes import AIMS, MERGEKIT_SECONDS

REFERENCE = "cuvee"
"""The side that every ratio is taken against."""
COLUMNS = ("method", "run", "wall s", "min-max", "CPU s", "peak MB", "anonymous MB", "wall / Cuvee's")
AIM_COLUMNS = ("method", "mergekit, reference", "Cuvee", "ratio", "aim")
_WIDTHS = (17, 22, 8, 15, 8, 8, 13, 15)


@dataclass(frozen=True)
class Record:
    """One run of one method on one side."""

    method: str
    side: str
    round: int
    run: Run


@dataclass
class Results:
    """Everything found so far."""

    command: str
    machine: dict[str, str]
    inputs: str
    records: list[Record] = field(default_factory=list)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def table_row(records: Sequence[Record], method: str, side: str) -> tuple[str, ...] | None:
    """The cells of one row, or None if that side never ran the method to its end."""
    own = {record.round: record.run for record in records if (record.method, record.side) == (method, side)}
    good = {index: run for index, run in own.items() if run.exit_code == 0}
    if not good:
        return None
    walls = [run.wall_s for run in good.values()]
    anonymous = [run.anonymous_mb for run in good.values() if run.anonymous_mb is not None]
    ratio = paired_ratio(records, method, side)
    return (
        method,
        side,
        f"{median(walls):.2f}",
        f"{min(walls):.2f}-{max(walls):.2f}",
        f"{median(run.cpu_s for run in good.values()):.2f}",
        f"{median(run.peak_mb for run in good.values()):.0f}",
        f"{median(anonymous):.0f}" if anonymous else "",
        "" if ratio is None or side == REFERENCE else f"{ratio:.2f}",
    )


def paired_ratio(records: Iterable[Record], method: str, side: str) -> float | None:
    """The median over rounds of the side's wall time by the reference's; None without a common round."""
    walls: dict[str, dict[int, float]] = {side: {}, REFERENCE: {}}
    for record in records:
        if record.method == method and record.side in walls and record.run.exit_code == 0:
            walls[record.side][record.round] = record.run.wall_s
    common = walls[side].keys() & walls[REFERENCE].keys()
    return median(walls[side][index] / walls[REFERENCE][index] for index in common) if common else None


def others_share(records: Sequence[Record]) -> dict[str, str]:
    """How busy everything else kept the machine while the runs lasted, as one more fact about it."""
    known = [record.run for record in records if record.run.others_cpu_s is not None]
    if not known:
        return {}
    available = sum(run.wall_s for run in known) * (os.cpu_count() or 1)
    taken = sum(run.others_cpu_s or 0.0 for run in known)
    return {"taken meanwhile by everything else": f"{taken / available:.0%} of the cores' time"}


def aims(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """For each method of known reference: its seconds, plain Cuvee's, their ratio, and the ratio aimed at."""
    rows = []
    for method, seconds in MERGEKIT_SECONDS.items():
        own = [r.run.wall_s for r in records if (r.method, r.side) == (method, REFERENCE) and r.run.exit_code == 0]
        if own:
            ratio = seconds / median(own)
            rows.append((method, f"{seconds:g}", f"{median(own):.2f}", f"{ratio:.1f}", str(AIMS[method])))
    return rows


def terminal_line(cells: Sequence[str]) -> str:
    """The cells padded to the columns' widths: words to the left, figures to the right."""
    padded = [
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return " ".join(padded).rstrip()


def markdown(results: Results) -> str:
    """The results as Markdown: machine, table, differences, notes, and the command that reproduces them."""
    ways = dict.fromkeys((record.method, record.side) for record in results.records)
    rows = [row for method, side in ways if (row := table_row(results.records, method, side))]
    rounds = 1 + max((record.round for record in results.records), default=0)
    how = (
        f"Medians of {rounds} round{'s' if rounds > 1 else ''}, the sides taking turns, each run a whole process "
        "from start to exit. Peak is resident memory and counts mapped files; anonymous memory leaves them out."
    )
    facts = {**results.machine, **others_share(results.records)}
    parts = [
        f"{results.inputs} {how}",
        "\n".join(f"- {name}: {text}" for name, text in facts.items()),
        _markdown_table(COLUMNS, rows, words=2),
    ]
    if rows := aims(results.records):
        parts += [
            "Against mergekit's seconds for the same recipes at full size on a quiet machine of two cores:",
            _markdown_table(AIM_COLUMNS, rows, words=1),
        ]
    if results.differences:
        parts += [
            "Values of the two tools' outputs, where nothing is drawn at random:",
            _differences(results.differences),
        ]
    if results.notes:
        parts.append("\n".join(f"- {note}" for note in results.notes))
    parts.append(f"```sh\n{results.command}\n```")
    return "\n\n".join(parts) + "\n"


def as_json(results: Results) -> str:
    """Every single run and all else as JSON."""
    return json.dumps(asdict(results), indent=1) + "\n"


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            method,
            f"{found['largest']:.3g}",
            str(found["largest_in"] or ""),
            f"{found['mean']:.3g}",
            f"{found['differing']:.2%}",
        )
        for method, found in differences.items()
    ]
    return _markdown_table(
        ("method", "largest difference", "in", "mean difference", "values that differ"), rows, words=1
    )


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> str:
    rule = ["---" if index < words else "---:" for index in range(len(columns))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))
