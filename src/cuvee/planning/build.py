"""Builds the plan: every output tensor with its sources, dtype, parameters, file and offset, all checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from cuvee.errors import CheckpointError, MethodError, PlanError, VocabularyError
from cuvee.layout.configs import ties_embeddings
from cuvee.layout.edits import layer_edits
from cuvee.layout.layout import layout_of
from cuvee.layout.names import is_derived
from cuvee.layout.ties import head_scale, input_embedding, is_head, untied_edits
from cuvee.methods.registry import get_method
from cuvee.methods.spec import MethodSpec
from cuvee.planning.ops import ParameterValue, Plan, PlannedModel, TensorOp
from cuvee.planning.outline import Checkpoints, Outline, Wanted, depth_of, home_of, outline
from cuvee.planning.shards import lay_out
from cuvee.recipe.schema import Recipe
from cuvee.recipe.unmatched import unmatched
from cuvee.recipe.values import resolve_parameters
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import is_float, name_of, promote
from cuvee.tensors.reference import ModelRef
from cuvee.tensors.sources import Constant, Source, is_verbatim, spelled
from cuvee.tensors.updates import Scaled
from cuvee.views.vocabulary_sizes import axes_of, sizes_differ
from cuvee.vocab.output import OutputVocabulary


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
    vocabulary: OutputVocabulary = field(default_factory=OutputVocabulary)
    seconds: float = 0.0
    """Of computing that opening took: a merge does it again."""


def build_plan(recipe: Recipe, checkpoints: Checkpoints, settings: PlanSettings, warnings: Sequence[str] = ()) -> Plan:
    """The plan of merging `checkpoints`, one for each model the recipe names, as the recipe says.

    Raises:
        PlanError: if shapes, names, dtypes or architectures do not fit together.

    """
    spec = get_method(recipe.method)
    models = {ref: index for index, ref in enumerate(checkpoints)}
    if not settings.allow_crimes:
        _check_architectures(checkpoints, recipe.architectures)
    planned = outline(recipe, checkpoints, crimes=settings.allow_crimes)
    base = home_of(recipe)
    builder = _Builder(recipe, spec, checkpoints, models, untied=_gains_head(planned, checkpoints[base]))
    drafts = [builder.op(wanted) for wanted in planned.tensors]
    _check_one_vocabulary(drafts, checkpoints[base])
    if recipe.only is not None and not any(part in draft.name for part in recipe.only for draft in drafts):
        raise PlanError(
            "`only` chooses nothing: no tensor has any of its parts in its name",
            expected="parts of tensor names, like mlp or self_attn; `cuvee layout` shows them",
            found=", ".join(map(repr, recipe.only))[:300],
            where=recipe.marks.where(("only",)),
        )
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
        (model, wanted.inputs[position])
        for op, wanted in zip(drafts, planned.tensors, strict=True)
        for model, position in zip(op.models, builder.order(wanted)[0], strict=True)
    }
    plan = Plan(
        models=described,
        base=models[base],
        ops=ops,
        shards=shards,
        seed=settings.seed,
        method=recipe.method,
        config_edits=_config_edits(planned, checkpoints[base]),
        dropped=() if recipe.only is not None else _dropped(checkpoints, models, used, planned),
        decisions=planned.decisions,
        warnings=(*warnings, *unmatched(recipe, [op.name for op in ops])),
        notes=(*(note for checkpoint in checkpoints.values() for note in checkpoint.notes), *builder.notes),
        version=settings.version,
    )
    _check_nothing_lost(recipe, plan)
    return plan


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of a checkpoint's headers and file sizes: it changes when what a plan relies on does."""
    digest = blake2b(digest_size=12)
    for name, stored in checkpoint.tensors.items():
        digest.update(f"{name} {stored.dtype} {stored.shape} {spelled(stored)}\n".encode())
    for relative in checkpoint.weight_files.values():
        digest.update(f"{relative} {checkpoint.files.get(relative, 0)}\n".encode())
    return digest.hexdigest()


def _check_architectures(checkpoints: Checkpoints, overrides: Mapping[ModelRef, str]) -> None:
    kinds = {
        c.name: (overrides[ref],) if ref in overrides else tuple(c.config.get("architectures") or ())
        for ref, c in checkpoints.items()
    }
    types = {None if ref in overrides else c.config.get("model_type") for ref, c in checkpoints.items()}
    if len(types) == 1 and None not in types:
        return  # one model under different heads: what their tensors have in common is told by their names
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
    untied: bool
    notes: list[str] = field(default_factory=list)

    def op(self, wanted: Wanted) -> TensorOp:
        """The op of one output tensor, without its place in a file."""
        order, has_base = self.order(wanted)
        refs = [wanted.slice_.sources[i].model for i in order]
        stored = [self.source(wanted.name, ref, wanted.inputs[i] or "") for ref, i in zip(refs, order, strict=True)]
        indices = tuple(self.models[ref] for ref in refs)
        if self.copied(wanted) is not None:
            return _op(wanted.name, stored, indices, stored[0].dtype)
        _check_shapes(wanted.name, stored, [self.checkpoints[ref] for ref in refs])
        dtypes = tuple(piece.dtype for piece in stored)
        if wanted.number is not None and not is_float(dtypes[0]) and stored[0].shape in ((), (1,)):
            number = Constant(wanted.number, dtypes[0], stored[0].shape)
            return _op(wanted.name, [number] * len(stored), indices, dtypes[0])
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
            self.recipe, wanted.module, wanted.slice_, self.spec, t=wanted.t, tensor=wanted.name, depth=depth_of(wanted)
        )
        if self.spec.check is not None:
            try:
                self.spec.check(**{name: parameters[name] for name in self.spec.check_arguments})
            except MethodError as error:
                place = self.recipe.marks.where(("merge_method",))
                raise error.at(f"{place}: {self.spec.name}, tensor {wanted.name}", tensor=wanted.name) from None
        if (
            self.spec.name == "passthrough"
            and dtype == dtypes[0]
            and is_verbatim(stored[0])
            and set(parameters.get("scale") or (None,)) <= {None, 1.0}
        ):
            return _op(wanted.name, stored, indices, dtype)
        return _op(wanted.name, stored, indices, dtype, has_base, self.spec.name, parameters)

    def source(self, name: str, ref: ModelRef, own: str) -> Source:
        """A model's tensor for the output's `name`; a head as it is where the decoder's output is scaled otherwise."""
        source = self.checkpoints[ref].tensors[own]
        if not is_head(name) or len(source.shape) != 2:
            return source
        width = source.shape[1]
        said = head_scale(self.checkpoints[ref].config, width)
        wanted = 1.0 if self.untied else head_scale(self.checkpoints[home_of(self.recipe)].config, width)
        if said == wanted:
            return source
        self.notes.append(
            f"{self.checkpoints[ref].name}: its head is multiplied by {said / wanted:g}, as its model multiplies the "
            "decoder's output and the merged one does not"
        )
        return Scaled(source, Constant(said / wanted, "F32", (width,)), 1)

    def promoted(self, dtypes: tuple[str, ...], tensor: str) -> str:
        """The dtype that holds all of `dtypes`; a refusal names the tensor."""
        try:
            return promote(dtypes)
        except CheckpointError as error:
            raise error.at(f"tensor {tensor}", tensor=tensor) from None

    def order(self, wanted: Wanted) -> tuple[list[int], bool]:
        """Positions of the slice's sources as the method sees them, and whether the first is the base."""
        if (copied := self.copied(wanted)) is not None:
            return [copied], False
        order = list(range(len(wanted.inputs)))
        position = self.base_position(wanted)
        if self.spec.base == "none" or position is None:
            return order, False
        order.remove(position)
        return [position, *order], True

    def copied(self, wanted: Wanted) -> int | None:
        """Which source is copied without arithmetic, because models differ there or the recipe wants it."""
        if self.recipe.only is not None and not any(part in wanted.name for part in self.recipe.only):
            return self.base_position(wanted) or 0
        return wanted.copied

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


def _check_shapes(tensor: str, stored: Sequence[Source], checkpoints: Sequence[Checkpoint]) -> None:
    shapes = [piece.shape for piece in stored]
    if len(set(shapes)) > 1:
        axis = next((axes[tensor] for c in checkpoints if tensor in (axes := axes_of(c))), None)
        if axis is not None and len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) == 1:
            raise sizes_differ(tensor, checkpoints, shapes)
        other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
        raise PlanError(
            f"tensor {tensor!r} has different shapes",
            expected=f"{list(shapes[0])} as in {checkpoints[0].name}",
            found=f"{list(shapes[other])} in {checkpoints[other].name}",
            fix="merge models of one size",
            tensor=tensor,
        )


def _check_one_vocabulary(ops: Sequence[TensorOp], base: Checkpoint) -> None:
    """Slices may take the embedding from one model and the head from another: they must be of one length."""
    axes = axes_of(base)
    lengths = {op.shape[axis]: op.name for op in ops if (axis := axes.get(op.name)) is not None}
    if len(lengths) > 1:
        raise VocabularyError(
            "the output's embedding and head would differ in length, because they come from different models",
            found="; ".join(f"{name!r} has {length} rows" for length, name in lengths.items()),
            fix="add `tokenizer: {source: base}` to the recipe to give all models one vocabulary",
            tensor=next(iter(lengths.values())),
        )


def _config_edits(planned: Outline, base: Checkpoint) -> dict[str, Any]:
    layout = layout_of(base.tensors, base.config)
    edits: dict[tuple[str, ...], Any] = {}
    for cut in planned.cuts.values():
        before = len(layout.stacks.get(cut.stack, ()))
        found = layer_edits(base.config, layout, cut.stack, cut.kept, cut.origins) if before else {}
        if base.config and len(cut.kept) != before and not found:
            raise PlanError(
                f"config.json of {base.name} does not say that it has {before} layers",
                fix="slice a model whose config.json holds its number of layers",
            )
        edits.update(found)
    if _gains_head(planned, base):
        edits.update(untied_edits(base.config))
    return {".".join(path): value for path, value in edits.items()}


def _gains_head(planned: Outline, base: Checkpoint) -> bool:
    """Whether the output has a head that the base lacks because it ties it to the embedding."""
    if not ties_embeddings(base.config) or input_embedding(base.tensors) is None:
        return False
    return any(is_head(wanted.name) and wanted.name not in base.tensors for wanted in planned.tensors)


def _dropped(
    checkpoints: Checkpoints, models: Mapping[ModelRef, int], used: set[tuple[int, str | None]], planned: Outline
) -> tuple[tuple[int, str], ...]:
    """Input tensors that no op reads: outside every slice and module, or absent from other models.

    A computed buffer that the output has from the base is not lost.
    """
    written = {wanted.name for wanted in planned.tensors}
    return tuple(
        (models[ref], name)
        for ref, checkpoint in checkpoints.items()
        for name, source in checkpoint.tensors.items()
        if (models[ref], name) not in used and not (name in written and is_derived(name, source.shape))
    )


def _check_nothing_lost(recipe: Recipe, plan: Plan) -> None:
    """Raises if whole models are merged and a tensor is neither used nor named by a decision: a fault of ours."""
    if recipe.only is not None or any(
        source.layer_range for m in recipe.modules for s in m.slices for source in s.sources
    ):
        return
    decided = {name for decision in plan.decisions for name in decision.tensors}
    lost = [name for _, name in plan.dropped if name not in decided] if len(recipe.modules) == 1 else []
    if lost:
        raise PlanError(f"{len(lost)} tensors would be lost", found=", ".join(lost[:3]), tensor=lost[0])
