"""How a checkpoint is quantised, told from its config and the names and dtypes of its tensors.

Float8 with scales is what `dequantised` turns into numbers. Every other format packs several numbers into an integer or
indexes a code book; averaging those bytes would mean nothing, so each is named and refused with the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.errors import CheckpointError
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.dtypes import is_float, is_quantised

CONFIG_KEYS = ("quantization_config", "compression_config")
FLOAT8_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "compressed_tensors", "modelopt", "finegrained_fp8")

_IN_TRANSFORMERS = "load it in transformers, call model.dequantize(), save the result and merge that"
_ORIGINAL = "merge the checkpoint that it was quantised from"


@dataclass(frozen=True)
class _Format:
    """A format that is refused: its name for people, how it is known, and the way out."""

    name: str
    methods: tuple[str, ...]
    """Values of `quant_method`."""
    marks: tuple[str, ...]
    """Ends of names that no other tensors have."""
    fix: str = _ORIGINAL


_REFUSED = (
    _Format("GPTQ (or AutoRound)", ("gptq", "auto-round", "auto_round", "intel/auto-round"), (".g_idx",)),
    _Format("AWQ", ("awq",), (".qzeros",)),
    _Format(
        "bitsandbytes",
        ("bitsandbytes",),
        (".quant_map", ".nested_absmax", ".SCB", "bitsandbytes__nf4", "bitsandbytes__fp4"),
        f"{_ORIGINAL}, or {_IN_TRANSFORMERS}",
    ),
    _Format(
        "MXFP4",
        ("mxfp4",),
        ("_proj_blocks",),
        "load it in transformers with quantization_config=Mxfp4Config(dequantize=True), save it and merge that",
    ),
    _Format("HQQ", ("hqq",), (".W_q",)),
    _Format("AQLM", ("aqlm",), ()),
    _Format("QuIP#", ("quip", "quip_sharp"), (".Qidxs",)),
    _Format("SpQR", ("spqr",), ()),
    _Format("EETQ", ("eetq",), ()),
    _Format("EXL2 or EXL3", ("exl2", "exl3"), (".q_invperm", ".trellis")),
    _Format("VPTQ", ("vptq",), ()),
    _Format("HIGGS", ("higgs",), ()),
    _Format("Quanto", ("quanto",), (".weight._data",)),
    _Format("torchao", ("torchao",), ()),
    _Format("BitNet", ("bitnet",), ()),
    _Format("compressed-tensors, packed or sparse", (), (".weight_packed", ".bitmask")),
    _Format("NVFP4", ("nvfp4",), (".weight_scale_2",)),
)


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that tells how weights are quantised; empty if there is none."""
    homes = [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, dict))]
    for home in homes:
        for key in CONFIG_KEYS:
            if isinstance(home.get(key), dict) and home[key]:
                return dict(home[key])
    return {}


def is_float8(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint holds float8 values, which can be dequantised; False if it is not quantised at all.

    Raises:
        CheckpointError: if it is quantised in any other way, naming the format and the way out.

    """
    quantisation = quantization_config(checkpoint.config)
    method = str(quantisation.get("quant_method", "")).lower()
    float8 = next((name for name, source in checkpoint.tensors.items() if is_quantised(source.dtype)), None)
    known = next((each for each in _REFUSED if method in each.methods), None)
    if known is None:
        marks = {mark: each for each in _REFUSED for mark in each.marks}
        ends = tuple(marks)
        marked = next((name for name in checkpoint.tensors if name.endswith(ends)), None)
        known = next((each for mark, each in marks.items() if marked and marked.endswith(mark)), None)
    if known is not None:
        raise _refusal(checkpoint, known.name, known.fix, method)
    if quantisation and float8 is None and method in FLOAT8_METHODS and not _has_integers(checkpoint):
        return False  # dequantised already; only its config still says otherwise
    if quantisation and (float8 is None or method not in FLOAT8_METHODS):
        raise _refusal(checkpoint, method or "unknown format", f"{_ORIGINAL}, or {_IN_TRANSFORMERS}", method)
    return float8 is not None


def _has_integers(checkpoint: Checkpoint) -> bool:
    return any(name.endswith(".weight") and not is_float(source.dtype) for name, source in checkpoint.tensors.items())


def _refusal(checkpoint: Checkpoint, name: str, fix: str, method: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.name} is quantised ({name}); its numbers are not weights that can be averaged",
        expected="float64, float32, bfloat16, float16, or float8 with scales",
        found="quantization_config in config.json" + (f" with quant_method {method!r}" if method else "")
        if quantization_config(checkpoint.config)
        else "tensors that only such checkpoints have",
        fix=fix,
        checkpoint=checkpoint.name,
        format=name,
    )
