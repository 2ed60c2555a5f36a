"""The one table of facts that headers cannot tell: how families name things. No architecture has code of its own."""

from __future__ import annotations

# Config keys that hold the length of a stack of layers.
LAYER_COUNT_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "num_encoder_layers",
)  # fmt: skip

# Where configs of models of several parts keep those of the language part.
LANGUAGE_CONFIGS = ("text_config", "language_config", "llm_config")

# Words in the names of config lists that have one entry a layer.
PER_LAYER_LISTS = ("layer", "block")

# Parts of names of tensors that act before the first layer; all others outside layers act after the last.
BEFORE_LAYERS = ("embed", "wte", "wpe", "embd", "shared.", "patch", "conv_in", "pre_layernorm", "pre_layrnorm")

# Input embeddings and the heads that may be tied to them.
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

# Modules as mergekit recipes name them -> parts of tensor names that belong to them; `None`: all that no other module
# claims.
MODULES: dict[str, tuple[str, ...] | None] = {
    "vision_tower": ("vision_tower.", "visual."),
    "vision_model": ("vision_model.",),
    "multi_modal_projector": ("multi_modal_projector.", "visual.merger.", "visual.deepstack_merger_list."),
    "text_decoder": None,
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
    "shared": ("shared.",),
    "default": None,
}
