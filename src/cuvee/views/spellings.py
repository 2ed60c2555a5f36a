"""The facts about names that headers cannot tell: other spellings of one thing, and what fused tensors are made of.

Every row holds for all models that use the name; where the order inside a fused tensor differs between families, or is
interleaved, the name stands in `UNKNOWN_ORDER` and is never taken apart.
"""

from __future__ import annotations

import re

# A spelling -> the one that stands for all. Used to compare names only; the output keeps the base's.
SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    # What stands before and after the layers, and between the parts of a model.
    (r"(^|\.)(word_embeddings|tok_embeddings|embed|(embeddings\.)?token_embedding)\.weight$", r"\1embed_tokens.weight"),
    (r"(^|\.)emb_ln\.", r"\1embeddings.LayerNorm."),
    (r"^(embed_out|head|cls|head\.decoder)\.(weight|bias)$", r"lm_head.\2"),
    (r"^(projection_head|head)\.(linear[12])\.", r"projection_head.\2."),
    (r"^lm_head\.norm\.", "lm_head.layer_norm."),
    (r"(^|\.)(vision_projector|mlp_AR|multi_modal_projector)\.", r"\1projector."),
    (r"(^|\.)(patchifier|conv1|patch_embed\.proj|embeddings\.patch_embeddings?(\.projection)?)\.", r"\1patch_embed."),
    (r"\.embeddings\.class_embedding$", ".embeddings.cls_token"),
    (r"\.(embeddings\.position_embeddings?|pos_embed)$", ".position_embeddings"),
    (r"\.embeddings\.(cls_token|mask_token|register_tokens)$", r".\1"),
    (r"\.(embeddings\.position_embedding\.weight|positional_embedding)$", ".position_embedding.weight"),
    (r"\.(pre_layrnorm|pre_layernorm)\.", ".ln_pre."),
    (r"\.ln_final\.", ".final_layer_norm."),
    (r"\.layernorm\.", ".norm."),
    # Norms and scales around attention and feed-forward parts.
    (r"\.(layernorm_before|layer_norm1|ln_1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2|ln_2)\.", ".norm2."),
    (r"\.(ls_?|lambda_|layer_scale)([12])(\.gamma|\.lambda1)?$", r".lambda_\2"),
    (r"\.(attention_layer_norm|attn_norm|attention_norm)\.", ".input_layernorm."),
    (r"\.(feedforward_layer_norm|ffn_norm|attn_ln)\.", ".post_attention_layernorm."),
    (r"\.post_attn_norm\.", ".post_self_attn_layernorm."),
    (r"\.(mlp_ln|post_ffn_norm|mlp\.post_mlp_layernorm)\.", ".post_mlp_layernorm."),
    (r"norm\.W_down\.", "norm.mlp.fc1."),
    (r"norm\.W_up\.", "norm.mlp.fc2."),
    # Connections between layers (DeepSeek-V4, HY-V4).
    (r"(^|\.)(hc_pre\.)?hc_head[._](hc_)?(hc_head_)?(fn|base|scale)$", r"\1hc_head.\5"),
    (r"\.(hc_pre\.)?hc_(attn|mlp|ffn)(_layer\.hc)?_(fn|base|scale)$", r".\2_hc.\4"),
    (r"\.mlp_hc\.", ".ffn_hc."),
    # Feed-forward parts; mixtures of experts, transformers 4 and 5.
    (r"\.(block_sparse_moe|moe|feed_forward|ffn)\.", ".mlp."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.linear_gate\.", ".gate_proj."),
    (r"\.experts\.fc1\.weight$", ".experts.gate_up_proj"),
    (r"\.experts\.fc2\.weight$", ".experts.down_proj"),
    (r"\.mlp\.input_linear\.weight$", ".mlp.experts.gate_up_proj"),
    (r"\.mlp\.output_linear\.weight$", ".mlp.experts.down_proj"),
    (r"\.mlp\.router\.layer\.weight$", ".mlp.gate.weight"),
    (r"\.mlp\.router\.(weight|bias)$", r".mlp.gate.\1"),
    (r"\.mlp\.router\.gate\.", ".mlp.gate."),
    (r"\.mlp\.(gate\.|experts\.|router\.)?(moe_statics\.)?(e_score_correction|expert)_bias$", ".mlp.expert_bias"),
    (r"\.mlp\.(gate\.bias|router_bias)$", ".mlp.expert_bias"),
    (r"\.(mlp\.)?(shared?_experts?|shared_mlp)\.", ".mlp.shared_experts."),
    (r"\.(mlp|shared_experts|experts\.\d+)\.w1\.", r".\1.gate_proj."),
    (r"\.(mlp|shared_experts|experts\.\d+)\.w2\.", r".\1.down_proj."),
    (r"\.(mlp|shared_experts|experts\.\d+)\.w3\.", r".\1.up_proj."),
    # Transformers of images and those that share their blocks, transformers 4 and 5.
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"(\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    # Attention, whatever it is called.
    (r"\.(attention|attn|self_attention)\.", ".self_attn."),
    (r"\.mixer\.(Wqkv|out_proj)\.", r".self_attn.\1."),
    (r"\.to_(q|k|v)\.", r".\1_proj."),
    (r"\.norm_(q|k)\.", r".\1_norm."),
    (r"\.self_attn\.(out_proj|dense|proj|projection_layer|to_out)\.", ".self_attn.o_proj."),
    (r"\.self_attn\.(softmax_offset|attention_sink_bias|attn_sink|learnable_sink_param)$", ".self_attn.sinks"),
    (r"\.w(q_a|q_b|kv|o_a|o_b|gate)\.", r".\1_proj."),
    (r"\.q_gate_proj\.", ".q_b_proj."),
    (r"\.q_a_norm\.", ".q_norm."),
    (r"\.indexer\.compressor\.", ".compressor.indexer."),
    (r"\.self_attn\.indexer\.(q_b_proj|weights_proj)\.", r".self_attn.compressor.indexer.\1."),
    (r"\.indexer\.scorer\.", ".indexer."),
    (r"\.(self_attn|compressor|indexer)\.norm\.", r".\1.kv_norm."),
    (r"\.ape$", ".position_bias"),
    (r"\.forget_gate\.", "."),
    (r"\.(self_attn|linear_attn)\.conv1d\.", r".\1.qkv_conv1d."),
)
# What stands somewhere in the names of one of two checkpoints -> spellings that hold for both, before all others.
MARKED: dict[str, tuple[tuple[str, str], ...]] = {
    ".attention.wqkv.": ((r"^output\.", "lm_head."), (r"\.attention\.wo\.", ".self_attn.o_proj.")),  # InternLM2
    "emb_ln.": (  # encoders that normalise after each part, as Nomic and Jina name them
        (r"\.norm1\.", ".post_attention_layernorm."),
        (r"\.norm2\.", ".post_mlp_layernorm."),
        (r"\.fc11\.", ".up_proj."),
        (r"\.fc12\.", ".gate_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    ),
}
# Numbered modules outside the layers, whose number says what they are.
NUMBERED: dict[str, str] = {
    "mlp1.0.": "projector.layer_norm.", "mlp1.1.": "projector.linear_1.", "mlp1.3.": "projector.linear_2.",  # InternVL
}  # fmt: skip
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
# The last part of a module's name -> its pieces, one after another along the first axis; and whether all are as long.
FUSED: dict[str, tuple[tuple[str, ...], bool]] = {
    "qkv_proj": (QUERY_KEY_VALUE, False),
    "Wqkv": (QUERY_KEY_VALUE, False),
    "qkv": (QUERY_KEY_VALUE, False),
    "W_pack": (QUERY_KEY_VALUE, False),
    "gqkv_proj": (("gate_proj", *QUERY_KEY_VALUE), False),
    "qkv_conv1d": (("q_conv1d", "k_conv1d", "v_conv1d"), False),
    "in_proj": (QUERY_KEY_VALUE, False),  # `in_proj_weight`, as torch's MultiheadAttention names it
    "gate_up_proj": (("gate_proj", "up_proj"), True),
    "up_gate_proj": (("up_proj", "gate_proj"), True),
    "weights_in": (("gate_proj", "up_proj"), True),
    "w12": (("gate_proj", "up_proj"), True),
}
# Kinds of models that interleave queries, keys and values in groups of heads -> the fused module, and the config's keys
# for the number of groups; each group holds its queries, its keys, its values.
IN_GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "internlm2": ("wqkv", ("num_key_value_heads", "num_attention_heads")),
    "gpt_neox": ("query_key_value", ("num_attention_heads",)),
    "bloom": ("query_key_value", ("n_head", "num_attention_heads")),
}
# The last part of a stack of experts -> the pieces that each expert's matrix is made of.
STACKED: dict[str, tuple[str, ...]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
# Fused tensors whose inner order differs from family to family -> why they cannot be taken apart.
UNKNOWN_ORDER: dict[str, str] = {
    r"\.query_key_value\.(weight|bias)$": "queries, keys and values alternate head by head in some families (GPT-NeoX, "
    "BLOOM, Falcon) and follow one another in others",
    r"\.h\.\d+\.self_attn\.qkv_proj\.(weight|bias)$": "CodeGen keeps queries, values and keys in blocks",
    r"\.(wqkv|w_qkv)\.(weight|bias)$": "some families (InternLM2) interleave queries, keys and values in groups",
    r"vision_model\.transformer\.resblocks\.\d+\.self_attn\.in_proj_(weight|bias)$": "Step3 keeps the rotary halves of "
    "queries and keys interleaved in it",
    r"\.self_attn\.wq\.(weight|bias)$": "Meta's and Mistral's own format keeps rotary halves interleaved in it",
    r"\.c_attn\.(weight|bias)$": "some families (GPT-2) store it transposed",
    r"\.gate_up_proj_bias$": "gates and ups alternate in it (gpt-oss)",
}
# Split tensors that the above would have to be matched with.
SPLIT = re.compile(r"(^|[._])(q_proj|query|to_q|wq|gate_proj)\.(weight|bias)$")
