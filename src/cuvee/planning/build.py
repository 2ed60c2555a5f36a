"""Builds the plan: every output tensor with its sources, dtype, parameters, file and offset, all checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from cuvee.errors import CheckpointError, PlanError
from cuvee.layout.layout import layer_edits
from cuvee.methods.registry import get_method
from cuvee.methods.spec import MethodSpec
from cuvee.planning.ops import ParameterValue, Plan, PlannedModel, TensorOp
from cuvee.planning.outline import Checkpoints, Outline, Wanted, outline
from cuvee.planning.shards import lay_out
from cuvee.recipe.schema import Recipe
from cuvee.recipe.values import resolve_parameters
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import is_float, is_quantised, name_of, promote
from cuvee.tensors.reference import ModelRef
from cuvee.tensors.sources import Source, is_verbatim, spelled


@dataclass(frozen=True)
class PlanSettings:
    """What a plan needs to know beside recipe and checkpoints."""

    max_shard_bytes: int
    seed: int
    allow_crimes: bool
    version: str


@dataclass(frozen=True)
class Opened:
    """A recipe with its checkpoints opened by their headers, and the plan of merging them."""

    recipe: Recipe
    checkpoints: Mapping[ModelRef, Checkpoint]
    plan: Plan


def build_plan(recipe: Recipe, checkpoints: Checkpoints, settings: PlanSettings, warnings: Sequence[str] = ()) -> Plan:
    """The plan of merging `checkpoints`, one for each model the recipe names, as the recipe says.

    Raises:
        PlanError: if shapes, names, dtypes or architectures do not fit together.

    """
    spec = get_method(recipe.method)
    models = {ref: index for index, ref in enumerate(checkpoints)}
    for checkpoint in checkpoints.values():
        _refuse_quantised(checkpoint)
    if not settings.allow_crimes:
        _check_architectures(checkpoints, recipe.architectures)
    planned = outline(recipe, checkpoints)
    builder = _Builder(recipe, spec, checkpoints, models)
    drafts = [builder.op(wanted) for wanted in planned.tensors]
    base = recipe.base_model or recipe.modules[0].slices[0].sources[0].model
    described = tuple(PlannedModel(c.name, c.identity, fingerprint(c)) for c in checkpoints.values())
    metadata = {
        "format": "pt",
        "cuvee.version": settings.version,
        "cuvee.recipe": recipe.text,
        "cuvee.inputs": "\n".join(f"{model.identity} {model.fingerprint}" for model in described),
        "cuvee.seed": str(settings.seed),
    }
    ops, shards = lay_out(drafts, settings.max_shard_bytes, metadata)
    used = {
        (op.models[i], name)
        for op, w in zip(drafts, planned.tensors, strict=True)
        for i, name in _names(op, w, builder)
    }
    return Plan(
        models=described,
        base=models[base],
        ops=ops,
        shards=shards,
        seed=settings.seed,
        method=recipe.method,
        config_edits=_config_edits(planned, checkpoints[base]),
        dropped=_dropped(checkpoints, models, used, recipe),
        warnings=tuple(warnings),
        version=settings.version,
    )


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of a checkpoint's headers and file sizes: it changes when what a plan relies on does."""
    digest = blake2b(digest_size=12)
    for name, stored in checkpoint.tensors.items():
        digest.update(f"{name} {stored.dtype} {stored.shape} {spelled(stored)}\n".encode())
    for relative in checkpoint.weight_files.values():
        digest.update(f"{relative} {checkpoint.files.get(relative, 0)}\n".encode())
    return digest.hexdigest()


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    quantised = next((name for name, stored in checkpoint.tensors.items() if is_quantised(stored.dtype)), None)
    if quantised or checkpoint.config.get("quantization_config"):
        raise PlanError(
            f"{checkpoint.name} is quantised; its numbers are not weights that can be averaged",
            found=f"tensor {quantised}" if quantised else "quantization_config in config.json",
            fix="merge the checkpoint it was quantised from, or dequantise it first",
        )


def _check_architectures(checkpoints: Checkpoints, overrides: Mapping[ModelRef, str]) -> None:
    kinds = {
        c.name: (overrides[ref],) if ref in overrides else tuple(c.config.get("architectures") or ())
        for ref, c in checkpoints.items()
    }
    if len({kind for kind in kinds.values() if kind}) > 1:
        raise PlanError(
            "the models are of different architectures",
            found="; ".join(f"{name}: {', '.join(kind)}" for name, kind in kinds.items() if kind),
            fix="merge models of one architecture; --allow-crimes tries anyway",
        )


@dataclass(frozen=True)
class _Builder:
    """Turns names into ops, one output tensor at a time."""

    recipe: Recipe
    spec: MethodSpec
    checkpoints: Checkpoints
    models: Mapping[ModelRef, int]

    def op(self, wanted: Wanted) -> TensorOp:
        """The op of one output tensor, without its place in a file."""
        order, has_base = self.order(wanted)
        if self.recipe.only is not None and not any(part in wanted.name for part in self.recipe.only):
            order = [self.base_position(wanted) or 0]
        refs = [wanted.slice_.sources[i].model for i in order]
        stored = [self.checkpoints[ref].tensors[wanted.inputs[i]] for ref, i in zip(refs, order, strict=True)]
        indices = tuple(self.models[ref] for ref in refs)
        if len(order) < len(wanted.inputs):
            return _op(wanted.name, stored, indices, stored[0].dtype)
        _check_shapes(wanted.name, stored, [self.checkpoints[ref].name for ref in refs])
        dtypes = tuple(piece.dtype for piece in stored)
        if not all(map(is_float, dtypes)):
            self.promoted(dtypes, wanted.name)  # refuses dtypes that differ
            return _op(wanted.name, stored, indices, dtypes[0])
        dtype = self.recipe.out_dtype or self.recipe.dtype or self.promoted(dtypes, wanted.name)
        if not is_float(dtype):
            raise PlanError(
                f"weights cannot be written as {name_of(dtype)}",
                expected="float16, bfloat16, float32 or float64",
                where=self.recipe.marks.where(("out_dtype" if self.recipe.out_dtype else "dtype",)),
                fix="change dtype (or out_dtype); integer tensors keep their own dtype whatever it says",
                tensor=wanted.name,
            )
        parameters = resolve_parameters(
            self.recipe, wanted.module, wanted.slice_, self.spec, t=wanted.t, tensor=wanted.name
        )
        if self.spec.check is not None:
            self.spec.check(**{name: parameters[name] for name in self.spec.check_arguments})
        if (
            self.spec.name == "passthrough"
            and dtype == dtypes[0]
            and is_verbatim(stored[0])
            and set(parameters.get("scale") or (None,)) <= {None, 1.0}
        ):
            return _op(wanted.name, stored, indices, dtype)
        return _op(wanted.name, stored, indices, dtype, has_base, self.spec.name, parameters)

    def promoted(self, dtypes: tuple[str, ...], tensor: str) -> str:
        """The dtype that holds all of `dtypes`; a refusal names the tensor."""
        try:
            return promote(dtypes)
        except CheckpointError as error:
            raise error.at(f"tensor {tensor}", tensor=tensor) from None

    def order(self, wanted: Wanted) -> tuple[list[int], bool]:
        """Positions of the slice's sources as the method sees them, and whether the first is the base."""
        order = list(range(len(wanted.inputs)))
        position = self.base_position(wanted)
        if self.spec.base == "none" or position is None:
            return order, False
        order.remove(position)
        return [position, *order], True

    def base_position(self, wanted: Wanted) -> int | None:
        """Which of the slice's sources is the base."""
        base = wanted.slice_.base_model or self.recipe.base_model
        return next((i for i, source in enumerate(wanted.slice_.sources) if source.model == base), None)


def _op(
    name: str,
    stored: Sequence[Source],
    models: tuple[int, ...],
    dtype: str,
    has_base: bool = False,
    method: str | None = None,
    parameters: Mapping[str, ParameterValue] | None = None,
) -> TensorOp:
    return TensorOp(name, stored[0].shape, dtype, 0, 0, tuple(stored), models, has_base, method, parameters or {})


def _names(op: TensorOp, wanted: Wanted, builder: _Builder) -> Iterable[tuple[int, str]]:
    order, _ = builder.order(wanted)
    return [(i, wanted.inputs[position]) for i, position in enumerate(order[: len(op.sources)])]


def _check_shapes(tensor: str, stored: Sequence[Source], names: Sequence[str]) -> None:
    if len({piece.shape for piece in stored}) > 1:
        other = next(i for i, piece in enumerate(stored) if piece.shape != stored[0].shape)
        vocabulary = "embed" in tensor or "lm_head" in tensor or "wte" in tensor
        raise PlanError(
            f"tensor {tensor!r} has different shapes",
            expected=f"{list(stored[0].shape)} as in {names[0]}",
            found=f"{list(stored[other].shape)} in {names[other]}",
            fix="the vocabularies differ in size: models must share a tokenizer"
            if vocabulary
            else "merge models of one size",
            tensor=tensor,
        )


def _config_edits(planned: Outline, base: Checkpoint) -> dict[str, Any]:
    edits: dict[str, Any] = {}
    for before, kept in planned.layers.values():
        found = layer_edits(base.config, before, kept)
        if base.config and len(kept) != before and len(kept) not in found.values():
            raise PlanError(
                f"config.json of {base.name} does not say that it has {before} layers",
                fix="slice a model whose config.json holds its number of layers",
            )
        edits.update({".".join(path): value for path, value in found.items()})
    return edits


def _dropped(
    checkpoints: Checkpoints, models: Mapping[ModelRef, int], used: set[tuple[int, str]], recipe: Recipe
) -> tuple[tuple[int, str], ...]:
    """Input tensors that no op uses although their model takes part: layers outside every slice."""
    if recipe.only is not None:
        return ()
    return tuple(
        (models[ref], name)
        for ref, checkpoint in checkpoints.items()
        for name in checkpoint.tensors
        if (models[ref], name) not in used
    )
