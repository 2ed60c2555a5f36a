"""adapter_config.json as PEFT reads it, and PEFT's names of an adapter's tensors.

PEFT finds modules by the end of their path. The shortest endings are written that match the modules meant
and no others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

PREFIX = "base_model.model."
# By how the name of the config's first architecture ends.
# Of other tasks (SEQ_CLS, TOKEN_CLS, QUESTION_ANS) PEFT expects their heads to be saved whole, unasked; an adapter that
# holds factors of them, or nothing, would not load.
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


@dataclass(frozen=True)
class AdapterPlan:
    """What an adapter holds.

    Attributes:
        ranks: path of each adapted module -> its rank; every scaling is 1.
        whole: modules saved whole.
        modules: all modules of the model, for endings that match no others.
        base: what the adapter goes on, as loaders find it.
        revision: of the base on the Hub.
        biases: whether biases are saved.
        fan_in_fan_out: whether linear layers store their weight as [in, out].
        tied: whether a head shares the embedding's change.
        architectures: as the model's config lists them.
        task: PEFT's name of the task, where the architectures do not tell it.
        targets: what finds the adapted modules, where `modules` are not all that the model has.
        parameters: those of `ranks` that are parameters of modules rather than modules.

    """

    ranks: Mapping[str, int]
    whole: Collection[str]
    modules: Collection[str]
    base: str | None
    revision: str | None = None
    biases: bool = False
    fan_in_fan_out: bool = False
    tied: bool = False
    architectures: Iterable[str] = ()
    task: str | None = None
    targets: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()


def adapter_config(plan: AdapterPlan) -> str:
    """The text of adapter_config.json. The commonest rank is `r`; others are patterns; alpha is the rank everywhere."""
    counted = Counter(plan.ranks.values())
    rank = counted.most_common(1)[0][0] if counted else 1
    others = {module: own for module, own in sorted(plan.ranks.items()) if own != rank}
    first = next(iter(plan.architectures), "")
    everything = _with_parents(plan.modules)
    modules = [name for name in plan.ranks if name not in plan.parameters]
    whole = list(plan.whole) if plan.targets is not None else _endings(plan.whole, everything, str.endswith)
    facts = {
        "base_model_name_or_path": plan.base,
        "revision": plan.revision,
        "peft_type": "LORA",
        "task_type": plan.task or next((task for ending, task in _TASKS.items() if first.endswith(ending)), None),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "all" if plan.biases else "none",
        "fan_in_fan_out": plan.fan_in_fan_out,
        "target_modules": list(plan.targets) if plan.targets is not None else _endings(modules, everything, _ends_in),
        **({"target_parameters": sorted(plan.parameters)} if plan.parameters else {}),
        "modules_to_save": whole or None,
        **({"ensure_weight_tying": True} if plan.tied else {}),
    }
    return json.dumps(facts, indent=2) + "\n"


def _ends_in(path: str, end: str) -> bool:
    return path == end or path.endswith("." + end)


def _with_parents(modules: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for module in modules:
        parts = module.split(".")
        found.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return found


def _endings(wanted: Collection[str], everything: Collection[str], matches: Callable[[str, str], bool]) -> list[str]:
    """Endings of whole path parts that match all of `wanted` and nothing else of `everything`."""
    found: dict[str, None] = {}
    covered: set[str] = set()
    for module in wanted:
        if module in covered:
            continue
        parts = module.split(".")
        for start in reversed(range(len(parts))):
            end = ".".join(parts[start:])
            caught = {path for path in everything if matches(path, end)}
            if start == 0 or caught <= set(wanted):
                found[end] = None
                covered |= caught
                break
    return sorted(found)


def factor_names(module: str, *, embedding: bool) -> tuple[str, str]:
    """PEFT's names of A and B of a module."""
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{PREFIX}{module}.{ends[0]}", f"{PREFIX}{module}.{ends[1]}"
