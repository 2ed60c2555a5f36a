"""What transformers calls modules in memory, where PEFT looks for them, if the files of a model call them otherwise."""

from __future__ import annotations

from cuvee.layout.facts import HEADS
from cuvee.layout.names import ends_with
from cuvee.lora.pairs import GENERATIVE
from cuvee.tensors.checkpoint import Checkpoint

# How the paths of modules begin in memory, where the files of a model may leave it out.
_LEFT_OUT = {"gpt2": "transformer.", "bloom": "transformer.", "opt": "model."}
# How names begin in the files of models that see, and how in memory (transformers from 4.52 on).
_SEEING = (
    ("language_model.lm_head", "lm_head"),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
_QWEN_VL = (("visual.", "model.visual."), ("model.", "model.language_model."))
_SEEING_BY_TYPE = {"qwen2_vl": _QWEN_VL, "qwen2_5_vl": _QWEN_VL}
_IN_MEMORY = ("model.language_model.", "model.visual.")


def path_in_memory(module: str, model: Checkpoint) -> str:
    """The path of a module in the model that transformers builds, where files let it begin otherwise."""
    kind = str(model.config.get("model_type"))
    if "vision_config" in model.config:
        return _seeing(module, kind)
    start = _LEFT_OUT.get(kind, "")
    architectures = model.config.get("architectures") or ("",)
    if not start or not str(architectures[0]).endswith(GENERATIVE) or ends_with(f"{module}.weight", HEADS):
        return module
    return module if any(name.startswith(start) for name in model.tensors) else start + module


def _seeing(module: str, kind: str) -> str:
    """The path of a module in a model that sees."""
    if module.startswith(_IN_MEMORY):
        return module
    for stored, there in _SEEING_BY_TYPE.get(kind, _SEEING):
        if f"{module}.".startswith(stored):
            return there + module.removeprefix(stored)
    return module
