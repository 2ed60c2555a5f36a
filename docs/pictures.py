"""Pictures of what methods do, as SVG drawn by hand: two models in a plane, or element by element.

Every picture is computed with the method itself. Which page shows it is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cuvee.methods.spec import MethodSpec
from cuvee.methods.stages import merger
from cuvee.numerics.block import Block
from cuvee.numerics.scan import Scan

Array = np.ndarray[Any, Any]

WIDTH, HEIGHT = 560, 250
_COLOURS = ("#4477aa", "#cc7711")
_MERGED, _FAINT, _TEXT = "#222222", "#bbbbbb", "#555555"
_STYLE = "font-family: sans-serif; font-size: 12px"
# Two models that lie in a plane, seen from the base; and two task vectors in which everything happens that methods
# look for: agreement, conflict, one model alone, small changes and outliers.
_PLANE = (np.array([2.0, 0.35]), np.array([0.55, 1.6]))
_ELEMENTS = (
    np.array([0.9, 0.5, -0.7, 0.15, -0.1, 0.6, 2.4, 0.05, -1.1, 0.3, -0.45, 0.0, 1.2, -0.2, 0.8, -0.6]),
    np.array([0.7, -0.8, -0.4, 0.1, 0.2, 0.0, 0.5, -0.9, -1.3, -0.35, 0.45, 0.4, 1.0, -2.1, -0.25, 0.1]),
)
_IN_A_PLANE = frozenset({
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "geometric_median", "model_stock", "task_arithmetic",
    "metagpt", "nan", "passthrough",
})  # fmt: skip
# What makes a method show what it does on so few elements.
_SETTINGS: dict[str, Any] = {
    "t": 0.5, "density": 0.5, "gamma": 0.07, "epsilon": 0.15, "select_topk": 0.5, "rescale": False, "normalize": True,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "ram": {"epsilon": 0.12}, "ramplus_tl": {"epsilon": 0.12, "r": 0.5}, "passthrough": {"scale": 0.5},
}  # fmt: skip
_TOLD = ("t", "density", "gamma", "epsilon", "select_topk", "threshold", "k")


def picture(spec: MethodSpec) -> str:
    """The method at work, as the text of an SVG file."""
    drawn, caption = _plane(spec) if spec.name in _IN_A_PLANE else _elements(spec)
    label = f"What {spec.name} makes of two models"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" style="{_STYLE}">',
            f"<title>{label}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *drawn,
            _words(12, HEIGHT - 10, caption, _TEXT),
            "</svg>\n",
        ]
    )


def _merged(spec: MethodSpec, arrays: Sequence[Array], **chosen: Any) -> Array:
    """What the method makes of these arrays: of values, or of changes, as it wants; always what a base of 0 becomes."""
    count = spec.max_models if spec.max_models == 1 else len(arrays)
    given = [array.astype(np.float64) for array in arrays[:count]]
    if spec.wants == "weights" and spec.base == "required":
        given = [np.zeros_like(given[0]) if spec.max_models == 1 and spec.name != "slerp" else arrays[0], arrays[-1]]
    if spec.scope != "elements":
        given = [array.reshape(1, -1) for array in given]
    block = Block(tuple(given), 0, 6)
    arguments = {p.argument: _argument(spec, name, len(given), chosen) for name, p in spec.parameters.items()}
    scan = _scan(block)
    prepared: tuple[Any, ...] = ()
    if spec.prepare is not None:
        prepared = (spec.prepare(scan, **{name: arguments[name] for name in spec.prepare_arguments}),)
    result: Array = merger(spec, lambda: scan, prepared, arguments)(block).reshape(-1)
    return result


def _argument(spec: MethodSpec, name: str, count: int, chosen: dict[str, Any]) -> Any:
    parameter = spec.parameters[name]
    value = 1.0 if parameter.required else parameter.default
    value = (_SETTINGS | _OWN.get(spec.name, {}) | chosen).get(name, value)
    return value if not parameter.per_model or isinstance(value, tuple) else (value,) * count


def _scan(block: Block) -> Scan:
    """The block as a whole tensor."""
    size = block[0].size
    align = block[0].shape[-1] if block[0].ndim > 1 else 1

    def read(start: int, stop: int) -> Block:
        parts = (array.reshape(-1)[start:stop] for array in block)
        return Block(tuple(part.reshape(-1, align) if align > 1 else part for part in parts), start, block.key)

    run: Callable[..., Any] = lambda function, spans: [function(span) for span in spans]  # noqa: E731
    return Scan(block[0].shape, len(block), ((0, size),), read, run, align)


def _plane(spec: MethodSpec) -> tuple[list[str], str]:
    """Two models as arrows, and where the merge of them goes as the share of the second one grows."""
    first, second = _PLANE
    shares = [i / 10 for i in range(11)]
    sweep: list[Array] = []
    if "weight" in spec.parameters and spec.max_models != 1:
        sweep = [_merged(spec, _PLANE, weight=(1 - s, s), normalize=False) for s in shares]
        middle = _merged(spec, _PLANE, weight=(0.5, 0.5), normalize=False)
        caption = "Dots: the share of the second model grows from 0 to 1. Arrow: equal shares."
    elif "t" in spec.parameters:
        sweep = [_merged(spec, _PLANE, t=s) for s in shares]
        middle = _merged(spec, _PLANE, t=0.5)
        caption = "Dots: t grows from 0 to 1. Arrow: t = 0.5."
    else:
        middle = _merged(spec, _PLANE)
        caption = "Arrow: the result."
    if spec.name == "passthrough":
        caption = "Arrow: the result with scale = 0.5; without it, the tensor itself."
    seen = [np.zeros(2), first, second, middle, *sweep]
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    scale = min((WIDTH - 220) / (high[0] - low[0]), (HEIGHT - 75) / (high[1] - low[1]))

    def at(point: Array) -> tuple[float, float]:
        return 60 + (point[0] - low[0]) * scale, HEIGHT - 45 - (point[1] - low[1]) * scale

    origin = "zero" if spec.wants == "weights" or spec.base == "optional" else "base"
    models = [first] if spec.max_models == 1 and spec.base == "none" else [first, second]
    drawn = [_words(at(np.zeros(2))[0] - 34, at(np.zeros(2))[1] + 4, origin, _TEXT)]
    drawn += [_dot(*at(point), 3, _FAINT) for point in sweep]
    for number, point in enumerate(models):
        drawn += _arrow(at(np.zeros(2)), at(point), _COLOURS[number], 2)
        drawn.append(_words(at(point)[0] + 8, at(point)[1] + 4, f"model {number + 1}", _COLOURS[number]))
    drawn += _arrow(at(np.zeros(2)), at(middle), _MERGED, 3)
    drawn.append(_words(at(middle)[0] + 8, at(middle)[1] + 14, "merged", _MERGED))
    return drawn, caption


def _elements(spec: MethodSpec) -> tuple[list[str], str]:
    """Sixteen elements: each model's change, and below it what is merged of them."""
    alone = spec.max_models == 1
    changes = _ELEMENTS[-1:] if alone else _ELEMENTS
    merged = _merged(spec, _ELEMENTS[-1:] if spec.wants == "deltas" and alone else _ELEMENTS)
    column, left = (WIDTH - 100) / len(merged), 85
    drawn: list[str] = []
    rows = (("changes", 62.0, changes, _COLOURS[-len(changes) :]), ("merged", 170.0, (merged,), (_MERGED,)))
    for label, middle, arrays, colours in rows:
        drawn.append(_words(12, middle + 4, label, _TEXT))
        drawn.append(_line((left, middle), (WIDTH - 15, middle), _FAINT, 1))
        width = (column - 8) / len(arrays)
        for number, (array, colour) in enumerate(zip(arrays, colours, strict=True)):
            for place, value in enumerate(array):
                if value:
                    drawn.append(
                        _bar(left + 4 + place * column + number * width, middle, width, float(value) * 20, colour)
                    )
    for number, colour in enumerate(() if alone else _COLOURS):
        drawn.append(_words(12, 84.0 + 16 * number, f"model {number + 1}", colour))
    told = [
        f"{name} {_argument(spec, name, 1, {})}".strip("(),").replace("(", "")
        for name in spec.parameters
        if name in _TOLD
    ]
    subject = "A model's changes of 16 elements" if alone else "Two models' changes of 16 elements"
    settings = f", with {' and '.join(told)}" if told else ""
    return drawn, f"{subject}, and what is merged of them{settings}."


def _n(value: float) -> str:
    return f"{round(float(value), 1) + 0.0:g}"


def _words(x: float, y: float, text: str, colour: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" fill="{colour}">{text}</text>'


def _dot(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{colour}"/>'


def _line(start: Sequence[float], end: Sequence[float], colour: str, width: float) -> str:
    (x1, y1), (x2, y2) = start, end
    return (
        f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="{colour}" stroke-width="{_n(width)}"/>'
    )


def _bar(x: float, middle: float, width: float, height: float, colour: str) -> str:
    top = middle - max(height, 0.0)
    return f'<rect x="{_n(x)}" y="{_n(top)}" width="{_n(width)}" height="{_n(abs(height))}" fill="{colour}"/>'


def _arrow(start: Sequence[float], end: Sequence[float], colour: str, width: float) -> list[str]:
    """A line with a head; a dot where it has no length."""
    (x1, y1), (x2, y2) = start, end
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 1:
        return [_dot(x1, y1, 4, colour)]
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    tips = [(x2, y2), (x2 - 10 * dx - 4 * dy, y2 - 10 * dy + 4 * dx), (x2 - 10 * dx + 4 * dy, y2 - 10 * dy - 4 * dx)]
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in tips)
    return [_line(start, (x2 - 8 * dx, y2 - 8 * dy), colour, width), f'<polygon points="{points}" fill="{colour}"/>']
