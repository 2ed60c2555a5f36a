"""What the tensors of an adapter are called: PEFT's names taken apart.

`base_model.model.MODULE.PART[.ADAPTER][.weight|.bias]`, where PART is one of the method's own names; whatever else
is saved (modules_to_save, biases, resized embeddings) is a whole tensor under the base model's own name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARTS = (
    "lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]"
    "|lokr_w[12](?:_[ab])?|lokr_t2|vera_lambda_[bd]|vera_[AB]|ia3_l|trainable_tokens_delta"
)
_KEY = re.compile(rf"(?:(?P<module>.+)\.)?(?P<part>{_PARTS})(?:\.(?P<leaf>weight|bias))?(?:\.(?P<rest>.+))?")
_WRAPPER = re.compile(r"\.(?:modules_to_save|token_adapter|ln_tuning_layers)(?:\.default)?(?=\.|$)")


@dataclass(frozen=True)
class Key:
    """A tensor's name taken apart.

    Attributes:
        module: the module's path in the base model; for whole tensors the tensor's name.
        part: what it is of that module's update; empty for whole tensors.

    """

    module: str
    part: str


def parse_key(name: str, adapter: str = "default") -> Key | None:
    """The meaning of a tensor's name; None for what only a trainer needs.

    Args:
        name: as stored.
        adapter: the name that the adapter had while it was trained, which some trainers leave in.

    """
    plain = name.removeprefix("base_model.model.").removeprefix("base_model.")
    if ".original_module." in plain:
        return None
    match = _KEY.fullmatch(plain.replace(f".{adapter}.", ".").removesuffix(f".{adapter}"))
    if match and match["rest"] is None:
        part = match["part"] + (".bias" if match["leaf"] == "bias" else "")
        return Key(_WRAPPER.sub("", match["module"] or ""), part)
    if ".base_layer" in plain:
        plain = plain.replace(".base_layer", "")
    return Key(_WRAPPER.sub("", plain), "")
