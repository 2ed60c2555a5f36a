"""Float8 checkpoints seen as bfloat16 ones: every weight is its values times its scales, worked out block by block.

Layouts: DeepSeek-V3 and transformers (`weight_scale_inv`, blocks of 128 x 128), DeepSeek-V4 (`scale` beside `weight`),
Mistral (`qscale_weight`), compressed-tensors, FBGEMM and ModelOpt (`weight_scale`, one for a tensor, a row or a block).
Scales of activations mean nothing to a merge and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cuvee.errors import CheckpointError
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dequantised import Dequantised
from cuvee.tensors.dtypes import is_float, is_quantised
from cuvee.tensors.scales import block_of
from cuvee.tensors.sources import Source, Stored
from cuvee.views.quantised import is_float8, quantization_config

_SCALES = ("_scale_inv", "_scale")
_BESIDE_WEIGHT = (".scale", ".qscale_weight")
_OF_ACTIVATIONS = (
    ".input_scale", ".output_scale", ".activation_scale", ".input_scale_ub", ".input_activation_scale",
    ".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_output_scale", ".input_global_scale", ".qscale_act",
    "_proj_activation_scale", "_proj_input_scale",
)  # fmt: skip


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with float8 weights turned into numbers; itself if it has none.

    Raises:
        CheckpointError: if it is quantised in another way, or a float8 weight has no scales that fit it.

    """
    if not is_float8(checkpoint):
        return checkpoint
    quantisation = quantization_config(checkpoint.config)
    stated = _stated_block(quantisation)
    exponents = quantisation.get("scale_fmt") == "ue8m0"  # some write powers of two as plain bytes
    tensors = checkpoint.tensors
    values = [name for name, source in tensors.items() if is_quantised(source.dtype) and source.dtype != "F8_E8M0"]
    scale_of = {name: _scale_name(name, tensors) for name in values}
    _refuse_packed(checkpoint)
    used = set(scale_of.values())
    view: dict[str, Source] = {}
    left_out = 0
    for name, source in tensors.items():
        if name in scale_of:
            view[name] = _weight(checkpoint, name, scale_of[name], stated, exponents=exponents)
        elif name in used:
            continue
        elif name.endswith(_OF_ACTIVATIONS):
            left_out += 1
        else:
            view[name] = source
    note = f"{checkpoint.name}: {len(scale_of)} float8 weights are read as bfloat16, multiplied by their scales"
    if left_out:
        note += f"; {left_out} scales of activations are left out"
    return replace(checkpoint, tensors=view, notes=(*checkpoint.notes, note))


def _scale_name(name: str, tensors: Mapping[str, Source]) -> str | None:
    above, dot, last = name.rpartition(".")
    beside = [above + end for end in _BESIDE_WEIGHT] if dot and last == "weight" else []
    return next((scale for scale in (*(name + end for end in _SCALES), *beside) if scale in tensors), None)


def _refuse_packed(checkpoint: Checkpoint) -> None:
    """Four-bit numbers go beside float8 in some checkpoints, two of them in a byte: bytes that have scales."""
    for name, source in checkpoint.tensors.items():
        plain = is_float(source.dtype) or is_quantised(source.dtype) or not name.endswith(".weight")
        scale = None if plain else _scale_name(name, checkpoint.tensors)
        if scale is not None:
            raise CheckpointError(
                f"tensor {name!r} of {checkpoint.name} is packed; its bytes are not weights that can be averaged",
                expected="float8 or wider where there are scales",
                found=f"{source.dtype} with {scale}",
                fix="load it in transformers, call model.dequantize(), save the result and merge that",
                tensor=name,
                checkpoint=checkpoint.name,
            )


def _weight(
    checkpoint: Checkpoint, name: str, scale: str | None, stated: tuple[int, ...] | None, *, exponents: bool
) -> Source:
    values = checkpoint.tensors[name]
    where = {"tensor": name, "checkpoint": checkpoint.name}
    if scale is None:
        raise CheckpointError(
            f"the float8 tensor {name!r} of {checkpoint.name} has no scales",
            expected=" or ".join(name + end for end in _SCALES),
            fix="fetch the checkpoint again; without scales its numbers cannot be known",
            **where,
        )
    scales = checkpoint.tensors[scale]
    if scales.dtype == "U8" and exponents and isinstance(scales, Stored):
        scales = replace(scales, dtype="F8_E8M0")
    if name + "_zero_point" in checkpoint.tensors or not is_float(scales.dtype):
        raise CheckpointError(
            f"the float8 tensor {name!r} of {checkpoint.name} is quantised in a way that is not known here",
            found=f"{scale} of dtype {scales.dtype}" if not is_float(scales.dtype) else f"{name}_zero_point",
            fix="merge the checkpoint that it was quantised from",
            **where,
        )
    block = block_of(values.shape, scales.shape, stated)
    if block is None:
        raise CheckpointError(
            f"the scales of the float8 tensor {name!r} of {checkpoint.name} do not fit it",
            expected=f"one for the tensor, for each row, or for each block of {list(values.shape)}",
            found=f"{scale} of shape {list(scales.shape)}",
            fix="fetch the checkpoint again",
            **where,
        )
    if not (isinstance(values, Stored) and isinstance(scales, Stored)):
        raise CheckpointError(f"the float8 tensor {name!r} of {checkpoint.name} does not lie in one piece", **where)
    columns = -(-values.shape[-1] // block[-1]) if values.shape and block[-1] else 1
    rows = math.prod(scales.shape) // columns if columns else 0
    return Dequantised(values, replace(scales, shape=(rows, columns)), block)


def _stated_block(quantisation: Mapping[str, object]) -> tuple[int, ...] | None:
    """The block's shape that a config states: `weight_block_size`, or compressed-tensors' `block_structure`."""
    size = quantisation.get("weight_block_size")
    if isinstance(size, list) and all(isinstance(length, int) for length in size):
        return tuple(size)
    groups = quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        structure = weights.get("block_structure") if isinstance(weights, dict) else None
        if isinstance(structure, list) and all(isinstance(length, int) for length in structure):
            return tuple(structure)
    return None
