from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cuvee.planning.ops import Plan, plan_from_json, plan_to_json
from cuvee.tensors.sources import Joined, Stored
from support.merging import op_of, plan_of
from unit.planning.plans import Models, linear


def test_plans_survive_json(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.add("a")
    models.add("b")
    plan = models.plan(linear("a", "b"), max_shard_bytes=200)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_from_json(plan_to_json(plan, indent=2).encode()) == plan
    assert json.loads(plan_to_json(plan))["ops"][0]["name"] == plan.ops[0].name


def odd_plan() -> Plan:
    """Joined sources within joined ones, and every kind of parameter."""
    piece = Stored("f", 8, "BF16", (2, 3))
    row = Joined((piece, piece), 1)
    weight = (0.1, -0.0, 1e-300, 5e300)
    parameters = {"weight": weight, "int": (1, 2), "none": None, "flag": True, "text": ("a", None)}
    op = op_of("w", [Joined((row, row), 0)], "F32", "linear", parameters, has_base=False)
    scalar = op_of("scalar", [replace(piece, shape=())], "BF16", None, {}, has_base=False)
    more: dict[str, Any] = {"config_edits": {"a.b": 3, "layer_types": ["x", "y"]}, "dropped": ((0, "lost"),)}
    return replace(plan_of([op, scalar], ["a"]), warnings=("careful",), **more)


def test_every_kind_of_value_survives_json() -> None:
    plan = odd_plan()
    found = plan_from_json(plan_to_json(plan))
    assert found == plan
    assert found.ops[0].sources == plan.ops[0].sources
    (parameters,) = [dict[str, Any](op.parameters) for op in found.ops if op.name == "w"]
    assert math.copysign(1, parameters["weight"][1]) == -1
    assert parameters["flag"] is True
    assert [type(value) for value in parameters["int"]] == [int, int]


def test_broken_json_is_not_a_plan() -> None:
    with pytest.raises(ValueError, match="ops"):
        plan_from_json('{"ops": 3}')


def test_sizes() -> None:
    plan = odd_plan()
    sizes = {op.name: (op.size, op.nbytes, op.bytes_read) for op in plan.ops}
    assert sizes == {"w": (24, 96, 48), "scalar": (1, 2, 2)}
    assert (plan.elements, plan.bytes_read, plan.copied) == (25, 50, 1)
