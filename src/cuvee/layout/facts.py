"""The one table of facts that headers cannot tell: how families name things. No architecture has code of its own."""

from __future__ import annotations

# Config keys that hold the length of a stack of layers.
LAYER_COUNT_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers",
    "num_blocks", "n_blocks", "layers", "speech_encoder_layers",
)  # fmt: skip
# Config lists with an entry a layer that stand for the number of layers where no key holds it.
LAYER_LISTS = ("layers_block_type", "block_types", "layer_types")
# Keys of configs whose layers share tensors, so that fewer are stored than are counted.
SHARED_LAYER_KEYS = ("num_hidden_groups", "num_layers_per_stack")
# Where one key may count the layers of encoder and decoder, and the key that counts the decoder's alone.
DECODER_COUNTS = {"num_layers": "num_decoder_layers"}
# Words in the names of config lists that have one entry a layer.
PER_LAYER_LISTS = (
    "layer", "block", "kv_heads", "query_heads", "attention_heads", "ffn_multipliers", "intermediate_size",
    "sparsity_pattern", "head_dim",
)  # fmt: skip
# Config strings with one character a layer.
PER_LAYER_STRINGS = ("hybrid_override_pattern", "layer_pattern")
# Config lists of pairs: kinds of layers, and how often they repeat.
REPEATED_PATTERNS = ("attention_types",)
# Config lists of the numbers of layers that are of some kind.
LAYER_INDEX_LISTS = (
    "mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers",
    "deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes", "hybrid_layer_ids", "dense_layers",
    "ple_layer_ids", "full_attention_layers", "linear_attention_layers", "global_attention_layers",
)  # fmt: skip
# Config keys that count the first layers of a kind of their own.
LEADING_LAYER_COUNTS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")

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
# What encoder and decoder share, and the names under which it may be stored once more.
SHARED = "shared.weight"
SHARED_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Biases of heads that are tied too, if the head is, by the ends of their names -> what they are tied to.
TIED_BIASES = {"predictions.decoder.bias": "predictions.bias", "lm_head.decoder.bias": "lm_head.bias"}
# Tensors with one entry a token that are not matrices.
VOCABULARY_BIASES = (
    "lm_head.bias", "predictions.bias", "predictions.decoder.bias", "lm_head.decoder.bias", "final_logits_bias",
    "vocab_projector.bias", "pred_layer.proj.bias", "lm_loss.bias", "^decoder.bias", "embed_out.bias",
)  # fmt: skip
# The end of an embedding's name -> what the head is called, if the model has one.
HEAD_NAMES = {
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "embed_tokens.weight": "lm_head.weight", "shared.weight": "lm_head.weight", "wte.weight": "lm_head.weight",
    "embed_in.weight": "embed_out.weight", "backbone.embeddings.weight": "lm_head.weight",
    "rwkv.embeddings.weight": "head.weight",
}  # fmt: skip
# The same for families whose embedding is called as others' is.
FAMILY_HEADS = {"whisper": "proj_out.weight"}
# Parts of class names of models with a head that the config's `tie_word_embeddings` speaks of.
MODELS_WITH_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Ends of class names of models that have no head to be tied, unless the name holds one of the second line's words.
MODELS_WITHOUT_HEADS = ("Model", "Classification", "QuestionAnswering", "MultipleChoice", "ForCTC", "Retrieval")
HEADS_AFTER_ALL = ("Head", "EncoderDecoder", "Chat", "GLM", "MTModel")
# Kinds of models that multiply what goes into the head by `width ** -0.5`, if the head is tied to the embedding.
SCALED_IF_TIED = ("t5", "longt5", "pop2piano", "switch_transformers")
# Buffers that a model computes for itself; older checkpoints hold them, newer ones do not. Those of the second line are
# counters, the third masks of four dimensions; biases of the same name are not meant.
DERIVED_BUFFERS = (
    "inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids", "token_type_ids", "masked_bias",
    "relative_position_index",
)  # fmt: skip
COUNTERS = ("num_batches_tracked",)
DERIVED_MASKS = ("attn.bias", "attention.bias", "attn.attention.bias")
# Integers in a layer that hold the layer's own number, and what the first layer is called there.
LAYER_NUMBERS = {"layer_idx": 0, "layer_index": 0, "layer_id": 0, "layer_number": 1}
# Config keys that hold the vocabulary's size; the first is what a config that names none would use.
VOCABULARY_KEYS = ("vocab_size", "n_words")

# Words of names of tensors and config parts -> the part of a model that they speak of.
ROLES = {
    "text": "text", "language": "text", "llm": "text", "lm": "text", "thinker": "text",
    "vision": "vision", "visual": "vision", "image": "vision", "vit": "vision", "video": "vision", "pixel": "vision",
    "audio": "audio", "speech": "audio", "sound": "audio", "codec": "audio", "mimi": "audio",
    "encoder": "encoder", "decoder": "decoder", "qformer": "qformer", "talker": "talker",
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
    "audio_tower": ("audio_tower.", "audio_model."),
    "multi_modal_projector": (
        "multi_modal_projector.", "visual.merger.", "visual.deepstack_merger_list.", "embed_vision.", "embed_audio.",
    ),
    "text_decoder": None,
    "encoder": ("encoder.",),
    "decoder": ("decoder.", "lm_head.", "proj_out."),
    "shared": ("shared.",),
    "default": None,
}  # fmt: skip
