"""The recipes whose results mergekit 0.1.5 gave once are kept in `tests/data`; `record_mergekit.py` there makes them.

mergekit was run as a black box. Nothing of it is needed to compare with what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.methods.registry import get_method
from support.checkpoints import DTYPES
from support.tiny_models import Family, make_llama

RESULTS = Path(__file__).parent.parent / "data" / "mergekit-0.1.5.npz"
ABC = {
    "a": {"weight": 1.0, "density": 0.5, "gamma": 0.1},
    "b": {"weight": 0.5, "density": 0.7, "gamma": 0.05},
    "c": {"weight": 0.3, "density": 0.3, "gamma": 0.2},
}
WEIGHTS = {name: {"weight": values["weight"]} for name, values in ABC.items()}
PLAIN: dict[str, dict[str, float]] = {"a": {}, "b": {}, "c": {}}
PAIR = {"a": WEIGHTS["a"], "b": WEIGHTS["b"]}
ONE: dict[str, dict[str, float]] = {"a": {}}


@dataclass(frozen=True)
class Recorded:
    """A recipe over the models of `family`: parameters of each model, and for all."""

    method: str
    models: Mapping[str, Mapping[str, float]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: bool = True

    def recipe(self, family: Family, dtype: str) -> dict[str, Any]:
        """The recipe as mergekit and Cuvee read it."""
        models = [{"model": str(family.path(name)), "parameters": dict(own)} for name, own in self.models.items()]
        whole = {"merge_method": self.method, "models": models, "parameters": dict(self.parameters), "dtype": dtype}
        return whole | ({"base_model": str(family.path("base"))} if self.base else {})

    def arguments(self) -> dict[str, Any]:
        """The method's arguments as its oracle takes them."""
        found: dict[str, Any] = {}
        for name, parameter in get_method(self.method).parameters.items():
            if parameter.per_model:
                each = tuple(own.get(name, self.parameters.get(name)) for own in self.models.values())
                found[parameter.argument] = parameter.default * len(each) if None in each else each
            else:
                found[parameter.argument] = self.parameters.get(name, parameter.default)
        return found


RECIPES = {
    "linear": Recorded("linear", WEIGHTS, base=False),
    "linear as it is": Recorded("linear", WEIGHTS, {"normalize": False}, base=False),
    "slerp": Recorded("slerp", ONE, {"t": 0.3}),
    "nuslerp": Recorded("nuslerp", PAIR, base=False),
    "nuslerp of deltas": Recorded("nuslerp", PAIR),
    "nuslerp by columns": Recorded("nuslerp", PAIR, {"nuslerp_flatten": False}),
    "nuslerp by rows": Recorded("nuslerp", PAIR, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, base=False),
    "multislerp": Recorded("multislerp", WEIGHTS, base=False),
    "multislerp of deltas": Recorded("multislerp", WEIGHTS),
    "karcher": Recorded("karcher", PLAIN, base=False),
    "task_arithmetic": Recorded("task_arithmetic", WEIGHTS, {"lambda": 0.7}),
    "task_arithmetic normalised": Recorded("task_arithmetic", WEIGHTS, {"normalize": True}),
    "ties": Recorded("ties", ABC),
    "ties as a sum": Recorded("ties", ABC, {"normalize": False, "rescale": True, "lambda": 1.2}),
    "breadcrumbs": Recorded("breadcrumbs", ABC),
    "breadcrumbs rescaled": Recorded("breadcrumbs", ABC, {"rescale": True}),
    "breadcrumbs_ties": Recorded("breadcrumbs_ties", ABC, {"normalize": True}),
    "sce": Recorded("sce", PLAIN),
    "sce of few": Recorded("sce", PLAIN, {"select_topk": 0.3}),
    "model_stock": Recorded("model_stock", PLAIN),
    "model_stock by rows": Recorded("model_stock", PLAIN, {"filter_wise": True}),
    "nearswap": Recorded("nearswap", ONE, {"t": 0.05}),
    "arcee_fusion": Recorded("arcee_fusion", ONE),
    "ram": Recorded("ram", PLAIN, {"epsilon": 0.1}),
    "ramplus_tl": Recorded("ramplus_tl", PLAIN, {"epsilon": 0.1, "r": 0.3, "alpha": 0.9}),
    "passthrough": Recorded("passthrough", {"a": {"scale": 2.0}}, base=False),
}
KEPT = ("embed_tokens", "q_proj", "down_proj", "input_layernorm")
"""Of each result, the tensors with these in their names are kept: every kind of shape once."""
CODES = {"float32": "F32", "bfloat16": "BF16"}


def inputs(folder: Path, dtype: str) -> Family:
    """The models that all recipes merge."""
    return make_llama(folder, dtype=DTYPES[CODES[dtype]], layers=1, hidden=16, vocabulary=40)
