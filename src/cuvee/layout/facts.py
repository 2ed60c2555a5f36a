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

# Input embeddings, and the heads that may be tied to them, by the ends of their names; `^`: the whole name.
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "word_embedding.weight",
    "shared.weight", "tok_embeddings.weight", "token_embedding.weight", "tokens_embed.weight", "embedding.weight",
    "^embeddings.weight", "model.embeddings.weight", "backbone.embeddings.weight", "rwkv.embeddings.weight",
    "transformer.embeddings.weight", "transformer.w.weight", "^w.weight",
)  # fmt: skip
HEADS = (
    "lm_head.weight", "embed_out.weight", "^output.weight", "proj_out.weight", "predictions.decoder.weight",
    "lm_head.decoder.weight", "generator_lm_head.weight", "lm_loss.weight", "pred_layer.proj.weight",
    "vocab_projector.weight", "^decoder.weight", "^head.weight",
)  # fmt: skip
# Tensors with one entry a token that are not matrices.
VOCABULARY_BIASES = (
    "lm_head.bias", "predictions.bias", "predictions.decoder.bias", "lm_head.decoder.bias", "final_logits_bias",
    "vocab_projector.bias", "pred_layer.proj.bias", "lm_loss.bias", "^decoder.bias", "embed_out.bias",
)  # fmt: skip
# Config keys that hold the vocabulary's size; the first is what a config that names none would use.
VOCABULARY_KEYS = ("vocab_size", "n_words")

# Words of names of tensors and config parts -> the part of a model that they speak of.
ROLES = {
    "text": "text", "language": "text", "llm": "text", "lm": "text", "thinker": "text",
    "vision": "vision", "visual": "vision", "image": "vision", "vit": "vision", "video": "vision", "pixel": "vision",
    "audio": "audio", "speech": "audio", "sound": "audio", "codec": "audio", "mimi": "audio",
    "encoder": "encoder", "decoder": "decoder", "qformer": "qformer", "talker": "talker", "depth": "depth",
    "perceiver": "perceiver", "generator": "generator", "backbone": "backbone",
}  # fmt: skip
# Nested tables of configs that say nothing of a part of the model.
NOT_PARTS = (
    "quantization_config", "compression_config", "generation_config", "task_specific_params", "rope_scaling",
    "rope_parameters", "auto_map", "id2label", "label2id",
)  # fmt: skip

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
