"""What a merge method is, as data: its parameters, what it takes and how it may be sliced.

The spec is read off a function's signature once, at import. Validation, `--help`, documentation and the recipe checks
are all derived from it; nothing about a method is told twice. This module knows no arithmetic.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cuvee.errors import MethodError
from cuvee.numerics.block import Block

T = TypeVar("T")

Wants = Literal["weights", "deltas"]
Base = Literal["none", "optional", "required"]
Scope = Literal["elements", "rows", "matrix"]


class _Mark:
    """A tag inside `Annotated` that tells the signature reader what an argument is."""

    def __init__(self, role: str) -> None:
        self.role = role


Weights = Annotated[Block, _Mark("weights")]
"""The block's arrays are the models' own values; with a required base, the base's come first."""
Deltas = Annotated[Block, _Mark("deltas")]
"""The block's arrays are differences from the base, in recipe order without the base; the engine adds the base back."""
PerModel = Annotated[tuple[T, ...], _Mark("per model")]
"""One value for each array of the block, in the same order; recipes set it for a model or for all. The default is a
tuple of one."""
Over = Annotated[Literal["tensor", "model"], _Mark("over")]
"""Whether `prepare` scans one tensor at a time or all of the model as if it were one: a parameter that recipes set."""
Share = Annotated[float, _Mark("share")]
"""A number from 0 to 1; what a recipe sets beyond counts as the nearer end, and gets a warning."""
Prepared = Annotated[T, _Mark("prepared")]
"""What the method's `prepare` returned for this tensor."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as recipes set it."""

    name: str
    """The name in recipes (`lambda`, where Python must say `lambda_`)."""
    argument: str
    kind: type
    """float, int, bool or str."""
    per_model: bool
    default: Any
    """The default, or `REQUIRED`."""
    choices: tuple[Any, ...] = ()
    words: tuple[str, ...] = ()
    """Words that may stand in place of a value of `kind`: `bool | Literal["expected"]` has the word `expected`."""
    share: bool = False
    """Whether it lies between 0 and 1."""
    by_depth: bool = False
    """Whether a gradient reaches from the first layer over the last one to what comes after it: the tensors after the
    layers then have its last value, not its first."""
    stage: bool = False
    """Whether it belongs to a stage after the method: where a recipe does not set it, it is not passed."""
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is REQUIRED


REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class MethodSpec:
    """One merge method."""

    name: str
    apply: Callable[..., Any]
    prepare: Callable[..., Any] | None
    prepare_arguments: tuple[str, ...]
    check: Callable[..., None] | None
    check_arguments: tuple[str, ...]
    coefficients: Callable[..., tuple[float, ...]] | None
    """Set for methods that are a linear combination of what they want: its coefficients, one for each input."""
    coefficient_arguments: tuple[str, ...]
    wants: Wants
    base: Base
    min_models: int
    """Fewest inputs beside the base (for `base == "none"`: fewest inputs)."""
    max_models: int | None
    scope: Scope
    parameters: Mapping[str, Parameter]
    """By recipe name, in signature order."""
    takes_prepared: bool
    over: str | None
    """The argument that decides what `prepare` scans; None if that is always one tensor."""
    keeps: int
    """Bytes an element that `prepare` takes for what it keeps of a tensor of moderate size, beside masks."""
    summary: str
    doc: str
    reference: str | None

    @property
    def base_is_input(self) -> bool:
        """Whether the base is merged like any other model (and takes per-model parameters)."""
        return self.base == "none"


def read_signature(
    function: Callable[..., Any],
    *,
    name: str,
    base: Base,
    models: tuple[int, int | None],
    scope: Scope,
    prepare: Callable[..., Any] | None,
    check: Callable[..., None] | None,
    coefficients: Callable[..., tuple[float, ...]] | None,
    reference: str | None,
    keeps: int = 0,
) -> MethodSpec:
    """The spec that `function`'s signature and docstring describe.

    Raises:
        MethodError: for an argument whose meaning or type is not understood.

    """
    wants, takes_prepared, over, parameters = _read_arguments(function, name)
    if takes_prepared != (prepare is not None):
        raise MethodError(f"method {name!r} must have both `prepare=` and a Prepared argument, or neither", method=name)
    if over is not None and (prepare is None or scope != "elements"):
        raise MethodError(
            f"method {name!r} cannot scan the whole model", expected="`prepare=` and scope elements", method=name
        )
    text = inspect.cleandoc(function.__doc__ or "")
    return MethodSpec(
        name=name,
        apply=function,
        prepare=prepare,
        prepare_arguments=_arguments(name, prepare, parameters, 1),
        check=check,
        check_arguments=_arguments(name, check, parameters, 0),
        coefficients=coefficients,
        coefficient_arguments=_arguments(name, coefficients, parameters, 0),
        wants=wants,
        base=base,
        min_models=models[0],
        max_models=models[1],
        scope=scope,
        parameters=MappingProxyType(parameters),
        takes_prepared=takes_prepared,
        over=over,
        keeps=keeps,
        summary=text.split("\n", 1)[0],
        doc=text,
        reference=reference,
    )


def _read_arguments(function: Callable[..., Any], name: str) -> tuple[Wants, bool, str | None, dict[str, Parameter]]:
    """What a method wants; whether it takes something prepared; over which argument; and what recipes may set."""
    hints = get_type_hints(function, include_extras=True)
    docs = _argument_docs(function.__doc__ or "")
    wants: Wants | None = None
    takes_prepared = False
    over: str | None = None
    parameters: dict[str, Parameter] = {}
    for argument in inspect.signature(function).parameters.values():
        hint = hints.get(argument.name)
        role = _role(hint)
        if role in ("weights", "deltas"):
            wants = typing.cast("Wants", role)
        elif role == "prepared":
            takes_prepared = True
        else:
            parameter = _parameter(name, argument, hint, docs.get(argument.name, ""))
            parameters[parameter.name] = parameter
            over = argument.name if role == "over" else over
    if wants is None:
        raise MethodError(
            f"method {name!r} does not say what it takes",
            expected="a first argument annotated Weights or Deltas",
            method=name,
        )
    return wants, takes_prepared, over, parameters


def _role(hint: Any) -> str | None:
    if get_origin(hint) is Annotated:
        return next((mark.role for mark in hint.__metadata__ if isinstance(mark, _Mark)), None)
    return None


def _parameter(method: str, argument: inspect.Parameter, hint: Any, help_text: str) -> Parameter:
    per_model = _role(hint) == "per model"
    if per_model:
        hint = get_args(get_args(hint)[0])[0]
    elif _role(hint) == "over":
        hint = get_args(hint)[0]
    if share := _role(hint) == "share":
        hint = get_args(hint)[0]
    choices: tuple[Any, ...] = ()
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = type(choices[0])
    parts = [part for part in (get_args(hint) or (hint,)) if part is not type(None)]
    words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
    kinds = [part for part in parts if get_origin(part) is not Literal]
    if len(kinds) != 1 or kinds[0] not in (float, int, bool, str):
        raise MethodError(
            f"method {method!r}: cannot read the type of argument {argument.name!r}",
            expected="float, int, bool, str, Share, a Literal of those, one of them or words, PerModel[one of those], "
            "Over, Weights, Deltas or Prepared",
            found=str(hint),
            method=method,
            parameter=argument.name,
        )
    return Parameter(
        name=argument.name.rstrip("_"),
        argument=argument.name,
        kind=kinds[0],
        per_model=per_model,
        default=argument.default[0] if isinstance(argument.default, tuple) else argument.default,
        choices=choices,
        words=words,
        share=share,
        help=help_text,
    )


def _arguments(
    method: str, helper: Callable[..., Any] | None, parameters: Mapping[str, Parameter], given: int
) -> tuple[str, ...]:
    """The parameters that `prepare` or `check` asks for after its first `given` arguments, by name."""
    if helper is None:
        return ()
    wanted = tuple(inspect.signature(helper).parameters)[given:]
    own = {parameter.argument for parameter in parameters.values()}
    if unknown := [argument for argument in wanted if argument not in own]:
        raise MethodError(
            f"method {method!r}: {helper.__name__} asks for parameters the method does not have",
            found=", ".join(unknown),
            method=method,
        )
    return wanted


def _argument_docs(doc: str) -> dict[str, str]:
    """The `Args:` section of a docstring, by argument name."""
    lines = inspect.cleandoc(doc).splitlines()
    found: dict[str, str] = {}
    if "Args:" not in lines:
        return found
    current = None
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        text = line.strip()
        if line.startswith("    ") and not line.startswith("     ") and ":" in text:
            current, _, text = text.partition(":")
        if current and text:
            found[current] = f"{found.get(current, '')} {text}".strip()
    return found
