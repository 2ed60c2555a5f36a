"""A machine as estimates see it: how fast it reads, writes and computes. What a merge is made of is not known here.

Rates come from three places, each better than the one before: the figures below, a probe of this machine
(`cuvee.engine.probe`), and what the user says of another machine (`--machine`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cuvee.errors import CuveeError
from cuvee.options import parse_size
from cuvee.planning.ops import TensorOp

Kind: TypeAlias = tuple[str, str, tuple[str, ...], bool]
"""What an element's cost depends on: method, output dtype, the sources' kinds and dtypes, whether there is a base."""

_EXAMPLE = "read=3GB/s,write=1GB/s,cores=64,nodes=8"
_LARGEST_COUNT = 1 << 20
_LARGEST_RATE = 1e15


@dataclass(frozen=True)
class Machine:
    """A machine, measured or told of; the defaults were measured on one with two cores, files in the page cache.

    Attributes:
        read: bytes a second that its storage delivers.
        write: bytes a second that its storage takes.
        durable: bytes a second of what was written that reach the disk.
        copy: bytes a second that the kernel copies between files.
        start_seconds: until a new interpreter has NumPy and Cuvee loaded.
        cores: of one node.
        nodes: how many machines share the merge.
        seconds: on one core, for an element of each kind of op that was measured.
        process_bytes: memory of the first process before it merges.
        worker_bytes: memory of each process that it forks, before that merges.
        lane_bytes: memory that each thread at work takes; 0 if it was not measured.
        probed: whether this machine was measured.

    """

    read: float = 2.5e9
    write: float = 1.2e9
    durable: float = 2e9
    copy: float = 1.5e9
    start_seconds: float = 0.5
    cores: int = 2
    nodes: int = 1
    seconds: Mapping[Kind, float] = field(default_factory=dict)
    process_bytes: int = 42 << 20
    worker_bytes: int = 38 << 20
    lane_bytes: int = 0
    probed: bool = False


def other(machine: Machine, text: str) -> Machine:
    """The machine with what `text` (`read=3GB/s,cores=64`) says of another.

    Raises:
        CuveeError: if it says nothing that can be meant.

    """
    facts: dict[str, Any] = dict(parse_machine(text))
    if "write" in facts:
        facts["durable"] = facts["write"]
    return replace(machine, **facts)


def kind_of(op: TensorOp) -> Kind:
    """What the cost of one of the op's elements depends on."""
    return op.method or "", op.dtype, tuple(f"{source.kind} {source.dtype}" for source in op.sources), op.has_base


def parse_machine(text: str) -> dict[str, float | int]:
    """The rates and numbers that `read=3GB/s,write=1GB/s,cores=64,nodes=8` gives; each may be left out.

    Raises:
        CuveeError: for anything else.

    """
    found: dict[str, float | int] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name in found:
            raise _odd(f"{name} is given twice", text)
        if name in ("read", "write"):
            found[name] = _rate(value, text)
        elif name in ("cores", "nodes"):
            if not (value.isdecimal() and len(value) < 8 and 1 <= int(value) <= _LARGEST_COUNT):
                raise _odd(f"{name} must be a whole number from 1", text)
            found[name] = int(value)
        else:
            raise _odd(f"a machine has no {name[:40]!r}" if name else "nothing is said of the machine", text)
    return found


def _rate(value: str, text: str) -> float:
    try:
        rate = float(parse_size(value.strip().removesuffix("/s")))
    except CuveeError:
        raise _odd(f"{value[:40]!r} is not a rate", text) from None
    if not math.isfinite(rate) or rate > _LARGEST_RATE:
        raise _odd(f"{value[:40]!r} is more than any machine does", text)
    return rate


def _odd(what: str, text: str) -> CuveeError:
    return CuveeError(f"--machine: {what}", expected=f"parts of {_EXAMPLE}", found=text[:100] or "nothing")
