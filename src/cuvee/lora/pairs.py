"""Which tensors of a fine-tune are compared with which of its base, and how an adapter can hold their change.

Decided by names, shapes and config alone; whether a tensor changed at all is not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cuvee.errors import PlanError
from cuvee.layout.facts import EMBEDDINGS, FAMILY_HEADS, HEADS, SHARED
from cuvee.layout.names import ends_with
from cuvee.layout.ties import head_name, input_embedding, tied_embedding
from cuvee.lora.options import ExtractOptions
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import is_float, is_quantised
from cuvee.tensors.sources import Source

Kind = Literal["linear", "embedding", "experts", "bias", "whole"]

# Models whose linear layers store their weight as [in, out], and what those layers are called.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
# Further embeddings, by the end of their module's name, and matrices that are no linear layers: saved whole.
_OTHER_EMBEDDINGS = ("wpe", "embed_positions", "position_embeddings", "token_type_embeddings", "position_embedding",
                     "relative_attention_bias")  # fmt: skip
_ROUTERS = ("gate", "router", "shared_expert_gate")
# Stacked weights of a block of experts, in the order in which PEFT wraps them, and families that stack [in, out].
STACKS = ("gate_up_proj", "down_proj")
_TRANSPOSED_STACKS = ("gpt_oss", "openai_privacy_filter", "aria", "aria_text")
GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Pair:
    """A tensor of the fine-tune and what it is in the base.

    Attributes:
        name: the tensor's.
        kind: how its change may be held: factors of a linear layer, an embedding or each of stacked experts, a bias, or
            the tensor whole.
        transposed: whether the weight is stored as [in, out].
        tuned: its values in the fine-tune.
        base: those in the base; None if they cannot be compared (it is new, or has more rows).

    """

    name: str
    kind: Kind
    transposed: bool
    tuned: Source
    base: Source | None

    @property
    def module(self) -> str:
        """The module that the tensor belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def decomposable(self) -> bool:
        """Whether its change can be held as a product of factors."""
        return self.kind in ("linear", "embedding", "experts") and self.base is not None

    @property
    def experts(self) -> int:
        """How many matrices lie in the tensor, one behind the other."""
        return self.tuned.shape[0] if self.kind == "experts" else 1

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the tensor as a matrix, or of each of its matrices."""
        rows, *columns = self.tuned.shape[1:] if self.kind == "experts" else self.tuned.shape
        return rows, math.prod(columns)

    @property
    def cost(self) -> int:
        """Numbers that each rank of its factors takes."""
        return self.experts * sum(self.sides)


@dataclass(frozen=True)
class Pairs:
    """All tensors of a fine-tune.

    Attributes:
        taken: those that the adapter should hold.
        left: those left out by request.
        tied_head: the module of the head that shares the embedding's weights, if there is one.

    """

    taken: tuple[Pair, ...]
    left: tuple[Pair, ...]
    tied_head: str | None

    def tied_among(self, held: Iterable[Pair]) -> Pair | None:
        """The embedding whose change a tied head is given too, if it is held: PEFT wants it under both names."""
        if self.tied_head is None:
            return None
        return next((pair for pair in held if ends_with(pair.name, EMBEDDINGS)), None)


def pair_up(model: Checkpoint, base: Checkpoint, options: ExtractOptions) -> Pairs:
    """Every tensor of `model` with the base's, sorted by what the options ask for.

    Raises:
        PlanError: if the model is not a fine-tune of the base: tensors missing, or of other shapes.

    """
    pairs = tuple(_pairs(model, base, options))
    _check_complete(model, base)
    if options.include_regex and not any(re.search(i, pair.module) for i in options.include_regex for pair in pairs):
        patterns = " ".join(f"-i {pattern!r}" for pattern in options.include_regex)
        raise PlanError(
            f"no module of {model.name} matches {patterns}",
            expected=f"an expression for names like {pairs[0].module if pairs else '?'}",
            fix="`cuvee layout MODEL` lists the names",
        )
    taken = tuple(pair for pair in pairs if _wanted(pair, options))
    left = tuple(pair for pair in pairs if not _wanted(pair, options))
    return Pairs(taken, left, _tied_head(model, base))


def _pairs(model: Checkpoint, base: Checkpoint, options: ExtractOptions) -> Iterator[Pair]:
    conv1d = model.config.get("model_type") in _CONV1D_MODELS
    stacks = model.config.get("model_type") in _TRANSPOSED_STACKS
    for name, tuned in _tensors(model, base):
        origin = base.tensors.get(name) or base.tensors.get(tied_embedding(base.tensors, name) or "")
        module, _, leaf = name.rpartition(".")
        last = module.rpartition(".")[2]
        vocabulary = ends_with(name, (*EMBEDDINGS, *HEADS))
        if origin is not None and origin.shape != tuned.shape:
            if not (vocabulary or leaf == "bias") or origin.shape[1:] != tuned.shape[1:]:
                raise PlanError(
                    f"{model.name} is not a fine-tune of {base.name}: tensor {name!r} has another shape",
                    expected=f"{list(origin.shape)} as in {base.name}",
                    found=f"{list(tuned.shape)} in {model.name}",
                    fix="name the base that the model was trained from",
                    tensor=name,
                )
            origin = None
        kind: Kind = "whole"
        if leaf == "bias" and f"{module}.weight" in model.tensors and len(model.tensors[f"{module}.weight"].shape) == 2:
            kind = "bias"
        elif leaf == "weight" and len(tuned.shape) == 2 and not _matches(name, options.save_module):
            if ends_with(name, EMBEDDINGS) or last in _OTHER_EMBEDDINGS:
                # PEFT gives what encoder and decoder share, and Whisper's head, factors that it cannot run.
                runs = not ends_with(name, (SHARED,)) and model.config.get("model_type") not in FAMILY_HEADS
                kind = "embedding" if options.embed_lora and runs else "whole"
            elif last not in _ROUTERS:
                kind = "linear" if options.embed_lora or not ends_with(name, HEADS) else "whole"
        elif leaf in STACKS and len(tuned.shape) == 3 and not _matches(f"{name}.weight", options.save_module):
            kind = "experts"
        turned = kind == "embedding" or (conv1d and last in _CONV1D_LAYERS) or (stacks and kind == "experts")
        yield Pair(name, kind, turned, tuned, origin)


def _tensors(model: Checkpoint, base: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The fine-tune's float tensors by name, and a head that the base holds and the fine-tune ties to its embedding."""
    for name, source in model.tensors.items():
        if is_quantised(source.dtype):
            raise PlanError(
                f"{model.name} is quantised; what changed in it cannot be told",
                found=f"tensor {name} in {source.dtype}",
                fix="extract from the checkpoint it was quantised from",
                tensor=name,
            )
        if is_float(source.dtype):
            yield name, source
    for name in base.tensors:
        embedding = tied_embedding(model.tensors, name) if name not in model.tensors else None
        if embedding is not None:
            yield name, model.tensors[embedding]


def _wanted(pair: Pair, options: ExtractOptions) -> bool:
    """Whether the options ask for a tensor; as in mergekit, `-i` does not touch embeddings and head."""
    if any(re.search(pattern, pair.module) for pattern in options.exclude_regex):
        return False
    if options.skip_undecomposable and not pair.decomposable and not _matches(pair.name, options.save_module):
        vocabulary = ends_with(pair.name, (*EMBEDDINGS, *HEADS))
        if not vocabulary:
            return False
    if not options.include_regex or ends_with(pair.name, (*EMBEDDINGS, *HEADS)):
        return True
    return any(re.search(pattern, pair.module) for pattern in options.include_regex)


def unmatched(pairs: Pairs, options: ExtractOptions) -> tuple[str, ...]:
    """A line for each module or expression among the options that no module answers to."""
    every = (*pairs.taken, *pairs.left)
    asked = {
        f"{flag} {pattern!r}": any(re.search(pattern, pair.module) for pair in every)
        for flag, patterns in (("-e", options.exclude_regex), ("-i", options.include_regex))
        for pattern in patterns
    }
    asked |= {
        f"--save-module {name}": any(_matches(f"{pair.name}.weight" if pair.kind == "experts" else pair.name, (name,))
                                     for pair in every)
        for name in options.save_module
    }  # fmt: skip
    return tuple(f"{what} has no effect: no module is called so" for what, found in asked.items() if not found)


def _matches(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the module of tensor `name` is one of `modules`, or ends in `.` and one of them."""
    module = name.rpartition(".")[0]
    return any(module == wanted or module.endswith("." + wanted) for wanted in modules)


def _check_complete(model: Checkpoint, base: Checkpoint) -> None:
    """Raises a PlanError if the base holds tensors that the fine-tune lacks (a head tied to the embedding is there)."""
    lacking = [
        name
        for name, source in base.tensors.items()
        if name not in model.tensors and is_float(source.dtype) and tied_embedding(model.tensors, name) is None
    ]
    if lacking:
        raise PlanError(
            f"{model.name} is not a fine-tune of {base.name}: it lacks {len(lacking)} of its tensors",
            found=f"no {lacking[0]}",
            fix="name the base that the model was trained from",
            tensor=lacking[0],
        )


def _tied_head(model: Checkpoint, base: Checkpoint) -> str | None:
    """The head's module if neither checkpoint holds a head and the config ties one to the embedding."""
    architectures = model.config.get("architectures") or ()
    generative = any(str(name).endswith(GENERATIVE) for name in architectures)
    stored = any(ends_with(name, HEADS) for checkpoint in (model, base) for name in checkpoint.tensors)
    tied = model.config.get("tie_word_embeddings", model.config.get("text_config", {}).get("tie_word_embeddings", True))
    if not generative or not tied or stored:
        return None
    embedding = input_embedding(model.tensors)
    name = head_name(embedding, model.config) if embedding else None
    return (name or HEADS[0]).removesuffix(".weight")
