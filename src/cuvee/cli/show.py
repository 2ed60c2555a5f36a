"""Renders what the API gives: tables and short reports for people, JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cuvee.cli.report import duration, named, size
from cuvee.methods.spec import MethodSpec, Parameter
from cuvee.methods.stages import STAGES
from cuvee.planning.cost import Cost
from cuvee.planning.machine import Machine
from cuvee.planning.ops import Plan, TensorOp
from cuvee.tensors.dtypes import itemsize, name_of

_SHOWN = 5


class _Terminal(Console):
    """A console whose reader may leave early: `cuvee plan ... | head` is no failure."""

    def on_broken_pipe(self) -> None:
        """Ends quietly."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise BrokenPipeError from None


def terminal() -> Console:
    """Where everything is printed."""
    return _Terminal(highlight=False)


def _on(machine: Machine) -> str:
    cores = f"{machine.cores} cores" if machine.cores > 1 else "one core"
    nodes = f"{machine.nodes} machines of {cores} each" if machine.nodes > 1 else cores
    rates = f"reading {size(machine.read)}/s, writing {size(machine.write)}/s"
    return f"on {nodes}, {rates}" + ("" if machine.probed else " (not measured)")


def plan(planned: Plan, cost: Cost, *, with_ops: bool) -> None:
    """What a merge will do."""
    console = _Terminal(highlight=False)
    models = Table("model", "role", "tensors read", "bytes read", box=box.SIMPLE_HEAD)
    for index, model in enumerate(planned.models):
        pieces = [s for op in planned.ops for s, m in zip(op.sources, op.models, strict=True) if m == index]
        counted = sum(_elements(piece.shape) * itemsize(piece.dtype) for piece in pieces)
        role = "base" if index == planned.base else ""
        models.add_row(escape(model.name), role, str(len(pieces)), size(counted))
    console.print(models)
    dtypes = Counter(op.dtype for op in planned.ops)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("method", planned.method)
    facts.add_row(
        "output", f"{len(planned.ops)} tensors, {planned.elements / 1e6:,.1f} M parameters in {_dtypes(dtypes)}"
    )
    facts.add_row("", f"{len(planned.ops) - planned.copied} merged, {planned.copied} copied without arithmetic")
    for decision in planned.decisions:
        facts.add_row("rule", escape(f"{named(decision.tensors)}: {decision.rule}"))
    if planned.dropped:
        facts.add_row("dropped", f"{len(planned.dropped)} input tensors that no output tensor is made of")
    facts.add_row(
        "files", f"{len(planned.shards)}: {planned.shards[0].name}" + (" ..." if len(planned.shards) > 1 else "")
    )
    facts.add_row("reads", size(cost.bytes_read))
    facts.add_row("writes", f"{size(cost.bytes_written)} ({size(cost.disk_free)} free)")
    facts.add_row("peak memory", f"about {size(cost.peak_memory)}")
    facts.add_row("time", f"about {duration(cost.seconds)} {_on(cost.machine)}")
    for note in planned.notes:
        facts.add_row("note", escape(note))
    for key, value in planned.config_edits.items():
        facts.add_row("config", f"{key} becomes {value if not isinstance(value, list) else f'{len(value)} entries'}")
    console.print(facts)
    console.print(_parameters(planned.ops))
    if with_ops:
        console.print(_ops(planned))


def methods(specs: Sequence[MethodSpec]) -> None:
    """All methods, a line each."""
    table = Table("method", "models", "what it does", "parameters", box=box.SIMPLE_HEAD)
    for spec in specs:
        names = ", ".join(name for name in spec.parameters if name not in ("int8_mask", *STAGES))
        table.add_row(f"[bold]{spec.name}[/]", _inputs(spec), escape(spec.summary), names)
    _Terminal(highlight=False).print(table)


def method(spec: MethodSpec) -> None:
    """One method, explained."""
    console = _Terminal(highlight=False)
    text = "\n\n".join(" ".join(part.split()) for part in spec.doc.split("\nArgs:")[0].strip().split("\n\n"))
    console.print(f"[bold]{spec.name}[/]  ({_inputs(spec)})\n\n{escape(text)}\n")
    table = Table("parameter", "type", "default", "meaning", box=box.SIMPLE_HEAD)
    for parameter in spec.parameters.values():
        table.add_row(f"[bold]{parameter.name}[/]", _type(parameter), _default(parameter), escape(parameter.help))
    console.print(table)
    if spec.reference:
        console.print(f"Reference: {escape(spec.reference)}")
    console.print(f"\nRecipe:\n{example_recipe(spec)}", markup=False)


def methods_json(specs: Sequence[MethodSpec]) -> str:
    """The specs for programs."""
    return json.dumps(
        [
            {
                "name": spec.name,
                "summary": spec.summary,
                "base": spec.base,
                "min_models": spec.min_models,
                "max_models": spec.max_models,
                "scope": spec.scope,
                "reference": spec.reference,
                "parameters": [
                    {
                        "name": p.name,
                        "type": p.kind.__name__,
                        "per_model": p.per_model,
                        "required": p.required,
                        "default": None if p.required else p.default,
                        "choices": list(p.choices),
                        "words": list(p.words),
                        "help": p.help,
                    }
                    for p in spec.parameters.values()
                ],
            }
            for spec in specs
        ],
        indent=2,
    )


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _dtypes(counts: Counter[str]) -> str:
    return ", ".join(f"{name_of(code)}" + (f" ({n})" if len(counts) > 1 else "") for code, n in counts.most_common())


def _parameters(ops: Sequence[TensorOp]) -> Table:
    """Each parameter with the values it takes over the tensors."""
    table = Table("parameter", "values over the tensors", box=box.SIMPLE_HEAD)
    merged = [op for op in ops if op.method is not None]
    for name in dict.fromkeys(name for op in merged for name in op.parameters):
        values = Counter(op.parameters[name] for op in merged)
        shown = "; ".join(
            f"{value}" + (f" ({n} tensors)" if len(values) > 1 else "") for value, n in values.most_common(_SHOWN)
        )
        more = f"; and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        table.add_row(name.rstrip("_"), escape(shown + more))
    return table


def _ops(planned: Plan) -> Table:
    table = Table("tensor", "shape", "dtype", "method", "parameters", box=box.SIMPLE_HEAD)
    for op in planned.ops:
        parameters = ", ".join(f"{key}={value}" for key, value in op.parameters.items() if key != "int8_mask")
        table.add_row(
            escape(op.name), str(list(op.shape)).replace("[", "\\["), op.dtype, op.method or "copy", escape(parameters)
        )
    return table


def _inputs(spec: MethodSpec) -> str:
    low, high = spec.min_models, spec.max_models
    count = f"{low}" if low == high else f"{low}+" if high is None else f"{low} to {high}"
    return {"none": count, "required": f"base + {count}", "optional": f"{count}, base optional"}[spec.base]


def _type(parameter: Parameter) -> str:
    kind = " | ".join((*map(str, parameter.choices or (parameter.kind.__name__,)), *parameter.words))
    return f"{kind}, per model" if parameter.per_model else kind


def _default(parameter: Parameter) -> str:
    return (
        "[bold]required[/]"
        if parameter.required
        else ""
        if parameter.default is None
        else str(parameter.default).lower()
    )


def example_recipe(spec: MethodSpec) -> str:
    """A small recipe that uses the method."""
    values = {"weight": 0.5, "density": 0.5, "t": 0.5}
    needed = [p for p in spec.parameters.values() if p.required or p.name == "density"]
    lines = [f"merge_method: {spec.name}"]
    if spec.base == "required":
        lines.append("base_model: org/base")
    lines.append("models:")
    count = min(max(spec.min_models, 2), spec.max_models or 2)
    for number in range(count):
        lines.append(f"  - model: org/model-{number + 1}")
        own = [f"      {p.name}: {values.get(p.name, 1.0)}" for p in needed if p.per_model]
        lines += ["    parameters:", *own] if own else []
    shared = [f"  {p.name}: {values.get(p.name, 1.0)}" for p in needed if not p.per_model]
    lines += ["parameters:", *shared] if shared else []
    return "\n".join([*lines, "dtype: bfloat16"])
