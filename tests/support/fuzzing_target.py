"""What a fuzzing target is, and the strategies that all of them draw from.

A target's function returns if its input was taken; a refusal is a `CuveeError`. Anything else that it raises is a find.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st

from cuvee.errors import CuveeError
from cuvee.planning.build import PlanSettings, build_plan
from cuvee.recipe.load import load_recipe
from cuvee.recipe.schema import Recipe
from cuvee.tensors.checkpoint import Checkpoint

SETTINGS = PlanSettings(max_shard_bytes=1 << 30, seed=0, allow_crimes=False, version="0")


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    run: Callable[[bytes], None]
    inputs: st.SearchStrategy[bytes]
    seeds: tuple[bytes, ...]


def taken(target: Target, data: bytes) -> bool:
    """Whether the input was taken rather than refused; every other outcome is raised."""
    try:
        target.run(data)
    except CuveeError as refusal:
        told = str(refusal)
    else:
        return True
    assert 0 < len(told) < 20_000, "a refusal says something, and does not repeat its input at length"
    return False


def plan_of(recipe: Recipe, first: Checkpoint, second: Checkpoint) -> Any:
    return build_plan(recipe, dict(zip(recipe.models(), (first, second), strict=True)), SETTINGS)


@cache
def linear() -> Recipe:
    models = [{"model": name, "parameters": {"weight": [0.2, 0.8]}} for name in "ab"]
    return load_recipe({"merge_method": "linear", "models": models})[0]


def plan_pair(first: Checkpoint, second: Checkpoint) -> Any:
    """The plan of a linear merge of two checkpoints."""
    return plan_of(linear(), first, second)


NAMES = ("model.embed_tokens.weight", "model.layers.0.a.weight", "model.layers.1.a.weight", "lm_head.weight")

TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*NAMES, "..", "/", "\\", "\0", "\ud800", "{}", "a" * 5000, "9" * 5000, "layers." + "7" * 4400 + ".w"]
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400]),
    st.floats(),
    TEXT,
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def like(example: Any) -> st.SearchStrategy[Any]:
    """Values shaped like `example`, with anything else in places."""
    if isinstance(example, Mapping):
        known = {key: like(value) for key, value in example.items()}
        shaped = st.builds(
            lambda own, more: {**own, **more},
            st.fixed_dictionaries({}, optional=known),
            st.dictionaries(TEXT, JSON, max_size=1),
        )
        return shaped | JSON
    if isinstance(example, list):
        inner = st.one_of(*map(like, example)) if example else JSON
        return st.lists(inner, max_size=3) | JSON
    return st.just(example) | SCALARS | JSON


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good input with some of its bytes changed, cut, doubled or put elsewhere."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 9)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[start:stop] = draw(st.binary(max_size=9))
        elif kind == 1:
            del data[start:stop]
        elif kind == 2:
            data[start:start] = data[start:stop] * draw(st.integers(1, 40))
        else:
            data[start:stop] = draw(
                st.sampled_from(
                    [
                        b"[",
                        b"{",
                        b'"',
                        b"}",
                        b"]",
                        b":",
                        b",",
                        b"&a",
                        b"*a",
                        b"!!",
                        b"<<: ",
                        b"\n",
                        b"- ",
                        b"-1",
                        b"1e999",
                    ]
                )
            )
    return bytes(data)


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode()


def bytes_or(*better: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(*better, *better, st.binary(max_size=120))
