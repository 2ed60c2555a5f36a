"""Error against rank: the numbers, and a picture of them in SVG, drawn without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.lora.extraction import Extracted

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 360, 64, 40, 20, 52


@dataclass(frozen=True)
class Point:
    """The relative error if no module had a rank above `rank`, and the parameters of the factors then."""

    rank: int
    error: float
    parameters: int


def error_curve(found: Extracted) -> tuple[Point, ...]:
    """Points for ranks 0, 1, 2, 4, ... up to the largest in the adapter; the last is what was achieved."""
    modules = found.decomposed
    if not modules:
        return ()
    largest = max(each.rank for each in modules)
    ranks = [0, *(1 << power for power in range(largest.bit_length()) if 1 << power < largest), largest]
    kept = [np.concatenate(([0.0], np.cumsum(np.square(each.values, dtype=np.float64)))) for each in modules]
    rest = math.fsum(each.missing for each in found.held if not each.rank)
    points = []
    for rank in ranks:
        missing = [each.total - sums[min(rank, each.rank)] for each, sums in zip(modules, kept, strict=True)]
        # Sums of rounded singular values may pass the total by a hair, and never tell less than was measured.
        floored = math.fsum(max(gap, each.missing) for gap, each in zip(missing, modules, strict=True))
        parameters = sum(min(rank, each.rank) * each.cost for each in modules)
        points.append(Point(rank, math.sqrt((rest + floored) / (found.total or 1.0)), parameters))
    return tuple(points)


def error_picture(points: Sequence[Point]) -> str:
    """The curve as SVG: rank (logarithmic) to the right, relative error upwards."""
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    span = math.log2(1 + points[-1].rank) or 1.0
    top = max(point.error for point in points) or 1.0

    def x(rank: int) -> float:
        return _LEFT + inner_width * math.log2(1 + rank) / span

    def y(error: float) -> float:
        return _TOP + inner_height * (1 - error / top)

    line = " ".join(f"{x(point.rank):.1f},{y(point.error):.1f}" for point in points)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="12" role="img" aria-label="Relative error against rank">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">Relative error of the change against rank</text>',
    ]
    for step in range(5):
        level = top * step / 4
        parts.append(f'<path d="M{_LEFT} {y(level):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.3g}</text>')
    for point in points:
        parts.append(f'<text x="{x(point.rank):.1f}" y="{_HEIGHT - 30}" text-anchor="middle">{point.rank}</text>')
        parts.append(f'<circle cx="{x(point.rank):.1f}" cy="{y(point.error):.1f}" r="3" fill="#7b1e3b"/>')
    parts.append(f'<polyline points="{line}" fill="none" stroke="#7b1e3b" stroke-width="2"/>')
    parts.append(f'<text x="{_LEFT + inner_width / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">rank</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
