"""What an adapter does to one module, as source expressions over the base's tensors: a form for each method of PEFT's.

Where the module's tensors lie in the base, and what else an adapter brings, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.adapters.config import AdapterConfig
from cuvee.errors import PlanError
from cuvee.tensors.deltas import Hadamard, Kronecker, LowRank
from cuvee.tensors.sources import Source
from cuvee.tensors.updates import Added, Renormed, RowsReplaced, Run, Scaled

# Families that keep linear weights as [in, out], and the modules in which they do.
_CONV1D_FAMILIES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gpt-sw3", "ctrl", "biogpt2"}
_CONV1D_MODULES = {"c_attn", "c_proj", "c_fc", "q_attn"}

# What a module has of which nothing but the rows of some tokens is trained.
ONLY_TOKENS = {"trainable_tokens_delta"}


@dataclass(frozen=True)
class Target:
    """A module of the base that an adapter changes: its weight, its bias if there is one, and where they are."""

    name: str
    weight: Source
    bias: Source | None
    model_type: str


@dataclass(frozen=True)
class Update:
    """A module's weight as the adapter leaves it, and its bias if that changes too."""

    weight: Source
    bias: Source | None = None


def updated(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """The target with the module's update.

    Raises:
        PlanError: if shapes do not fit, or the form of the update is not supported.

    """
    parts = module.parts
    if "trainable_tokens_delta" in parts:
        target = Target(target.name, _with_tokens(target, module, adapter), target.bias, target.model_type)
    for part, form in _FORMS.items():
        if part in parts:
            return form(target, module, adapter)
    return Update(target.weight)


def low_rank(target: Target, module: AdapterModule, adapter: Adapter, a: Source, b: Source) -> LowRank:
    """B A in the target's shape: transposed where the weight is `[in, out]`."""
    out, inside = b.shape[0], math.prod(a.shape[1:])
    shape = target.weight.shape
    flat = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if flat == (out, inside) and (out != inside or not _stored_transposed(target, module, adapter.config)):
        return LowRank(b, a, module.scaling, shape)
    if flat == (inside, out):
        return LowRank(b, a, module.scaling, shape, transposed=True)
    raise misfit(target, adapter, f"B A of shape [{out}, {inside}]")


def misfit(target: Target, adapter: Adapter, found: str) -> PlanError:
    """The refusal of an update whose shape is not the tensor's."""
    return PlanError(
        f"adapter {adapter.name} does not fit its base: shapes of {target.name} differ",
        expected=f"an update for {list(target.weight.shape)}, the shape in the base",
        found=found,
        fix=named_base(adapter),
        tensor=target.name,
    )


def unsupported(target: Target, adapter: Adapter, what: str) -> PlanError:
    """The refusal of a form of update that is not built."""
    return PlanError(
        f"adapter {adapter.name} has {what} for {target.name}, which is not supported",
        fix="merge it into its base with PEFT's merge_and_unload, and name the result",
        tensor=target.name,
    )


def named_base(adapter: Adapter) -> str:
    """What to do about a base that does not fit."""
    named = adapter.config.base_model
    return f"its config says that it was trained on {named}" if named else "use the base that it was trained on"


def _lora(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """W + s B A; with a magnitude vector m, every output's weights then get length m (DoRA)."""
    parts = module.parts
    a, b = module.a, module.b
    if a is None or b is None:
        raise unsupported(target, adapter, "half an update")
    delta = low_rank(target, module, adapter, Scaled(a, parts["lora_E"], 0) if "lora_E" in parts else a, b)
    weight: Source = Added(target.weight, delta)
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None:
        lengths = delta.shape[-1] if delta.transposed else delta.shape[0]
        if math.prod(magnitude.shape) != lengths:
            raise misfit(target, adapter, f"a magnitude vector of shape {list(magnitude.shape)}")
        weight = Renormed(weight, magnitude, 1 if delta.transposed else 0)
    extra = parts.get("lora_B.bias")
    if extra is None:
        return Update(weight)
    if target.bias is None or extra.shape != target.bias.shape:
        raise misfit(target, adapter, f"an update of a bias, {list(extra.shape)}, that the base does not have")
    return Update(weight, Added(target.bias, extra, module.scaling))


def _loha(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """W + s (A1 B1) * (A2 B2), elementwise."""
    parts = module.parts
    if "hada_t1" in parts:
        raise unsupported(target, adapter, "LoHa in its decomposed form for convolutions")
    first, second = (
        _matrix(parts, f"hada_w{i}", module.scaling if i == 1 else 1.0, target.weight.shape) for i in (1, 2)
    )
    if first is None or second is None or _flat(first) != _flat(target.weight):
        raise misfit(target, adapter, _shapes(parts))
    return Update(Added(target.weight, Hadamard(first, second)))


def _lokr(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """W + s kron(W1, W2), either of them perhaps a product itself."""
    parts = module.parts
    if "lokr_t2" in parts:
        raise unsupported(target, adapter, "LoKr in its decomposed form for convolutions")
    first = parts.get("lokr_w1") or _matrix(parts, "lokr_w1", 1.0)
    second = parts.get("lokr_w2") or _matrix(parts, "lokr_w2", 1.0)
    if first is None or second is None or len(first.shape) != 2 or len(second.shape) != 2:
        raise unsupported(target, adapter, "LoKr factors that are not matrices")
    delta = Kronecker(first, second, module.scaling)
    if delta.shape != target.weight.shape:
        raise misfit(target, adapter, f"a Kronecker product of shape {list(delta.shape)}")
    return Update(Added(target.weight, delta))


def _ia3(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """Outputs (and their bias) or, in feed-forward modules, inputs multiplied by a number each (arXiv:2205.05638)."""
    by = module.parts["ia3_l"]
    if len(target.weight.shape) != 2 or len(by.shape) != 2 or 1 not in by.shape:
        raise unsupported(target, adapter, f"IA3 factors of shape {list(by.shape)}")
    feeds_forward = by.shape[0] == 1 and by.shape[1] != 1
    count = math.prod(by.shape)
    transposed = _stored_transposed(target, module, adapter.config)
    axis = int(feeds_forward != transposed)
    if target.weight.shape[axis] != count:
        raise misfit(target, adapter, f"{count} factors")
    bias = None if feeds_forward or target.bias is None else Scaled(_column(target.bias), by, 0)
    return Update(Scaled(target.weight, by, axis), None if bias is None else Run(bias, 0, (count,)))


def _vera(target: Target, module: AdapterModule, adapter: Adapter) -> Update:
    """W + (diag(b) B) (diag(d) A), A and B shared by all modules and cut to size (arXiv:2310.11454)."""
    parts, shared = module.parts, adapter.shared
    if "vera_A" not in shared or "vera_B" not in shared:
        raise unsupported(target, adapter, "VeRA without its projections (save_projection: false)")
    outputs, rank = parts["vera_lambda_b"], parts["vera_lambda_d"]
    out = math.prod(outputs.shape)
    transposed = _stored_transposed(target, module, adapter.config)
    shape = target.weight.shape
    inside = math.prod(shape) // max(out, 1)
    a, b = shared["vera_A"], shared["vera_B"]
    fits = len(shape) == 2 and shape[1 if transposed else 0] == out and a.shape[1] >= inside and b.shape[0] >= out
    if not fits or a.shape[0] != math.prod(rank.shape) or b.shape[1] != a.shape[0]:
        raise misfit(target, adapter, _shapes({**parts, **shared}))
    cut = Run(b, 0, (out, b.shape[1]))
    delta = LowRank(Scaled(cut, outputs, 0), Scaled(a, rank, 0), module.scaling, shape, transposed)
    return Update(Added(target.weight, delta))


def token_indices(module: AdapterModule, adapter: Adapter) -> tuple[int, ...]:
    """The rows that the module's trained tokens stand in."""
    table = adapter.config.token_indices
    leaf = module.path.rsplit(".", 1)[-1]
    indices = next((table[key] for key in (module.path, leaf, "") if key in table), ())
    return next(iter(table.values())) if not indices and len(table) == 1 else indices


def _with_tokens(target: Target, module: AdapterModule, adapter: Adapter) -> Source:
    """The embedding with some tokens' rows replaced."""
    rows, indices = module.parts["trainable_tokens_delta"], token_indices(module, adapter)
    shape = target.weight.shape
    if len(shape) != 2 or rows.shape != (len(indices), shape[1]) or max(indices, default=0) >= shape[0]:
        raise misfit(
            target, adapter, f"rows {list(rows.shape)} for {len(indices)} tokens, up to {max(indices, default=0)}"
        )
    return RowsReplaced(target.weight, rows, indices)


_FORMS: Mapping[str, Callable[[Target, AdapterModule, Adapter], Update]] = {
    "lora_A": _lora,
    "lora_B": _lora,
    "lora_embedding_A": _lora,
    "lora_embedding_B": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "ia3_l": _ia3,
    "vera_lambda_b": _vera,
}


def _matrix(
    parts: Mapping[str, Source], name: str, scale: float, shape: tuple[int, ...] | None = None
) -> LowRank | None:
    """The product of a pair of factors; None if they are not there or do not fit each other."""
    a, b = parts.get(f"{name}_b"), parts.get(f"{name}_a")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return None
    own = (b.shape[0], a.shape[1])
    return LowRank(b, a, scale, shape if shape and math.prod(shape) == math.prod(own) and shape[0] == own[0] else own)


def _stored_transposed(target: Target, module: AdapterModule, config: AdapterConfig) -> bool:
    """Whether the base keeps this weight as [in, out]: embeddings, and what the config or the family says."""
    leaf = module.path.rsplit(".", 1)[-1]
    family = target.model_type in _CONV1D_FAMILIES and leaf in _CONV1D_MODULES
    return module.is_embedding or config.fan_in_fan_out or family


def _flat(source: Source) -> tuple[int, int]:
    return (source.shape[0], math.prod(source.shape[1:])) if source.shape else (1, 1)


def _column(vector: Source) -> Run:
    return Run(vector, 0, (math.prod(vector.shape), 1))


def _shapes(parts: Mapping[str, Source]) -> str:
    return ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
