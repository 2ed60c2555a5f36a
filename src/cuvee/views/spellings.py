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
    (r"^embed_out\.", "lm_head."),
    # Mixtures of experts, transformers 4 and 5.
    (r"\.(block_sparse_moe|moe|feed_forward)\.", ".mlp."),
    (r"\.mlp\.input_linear\.weight$", ".mlp.experts.gate_up_proj"),
    (r"\.mlp\.output_linear\.weight$", ".mlp.experts.down_proj"),
    (r"\.mlp\.router\.layer\.weight$", ".mlp.gate.weight"),
    (r"\.mlp\.router\.(weight|bias)$", r".mlp.gate.\1"),
    (r"\.mlp\.router\.gate\.", ".mlp.gate."),
    (r"\.mlp\.(gate\.|experts\.|router\.)?(moe_statics\.)?(e_score_correction|expert)_bias$", ".mlp.expert_bias"),
    (r"\.(shared_expert|shared_mlp)\.", ".shared_experts."),
    (r"\.experts\.(\d+)\.w1\.", r".experts.\1.gate_proj."),
    (r"\.experts\.(\d+)\.w2\.", r".experts.\1.down_proj."),
    (r"\.experts\.(\d+)\.w3\.", r".experts.\1.up_proj."),
    # Transformers of images and those that share their blocks, transformers 4 and 5.
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"(\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    # Attention, whatever it is called.
    (r"\.(attention|attn|self_attention)\.", ".self_attn."),
    (r"\.self_attn\.(out_proj|dense|proj)\.", ".self_attn.o_proj."),
    (r"\.self_attn\.(softmax_offset|attention_sink_bias)$", ".self_attn.sinks"),
)
COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in SPELLINGS)

QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
# The last part of a module's name -> its pieces, one after another along the first axis; and whether all are as long.
FUSED: dict[str, tuple[tuple[str, ...], bool]] = {
    "qkv_proj": (QUERY_KEY_VALUE, False),
    "Wqkv": (QUERY_KEY_VALUE, False),
    "qkv": (QUERY_KEY_VALUE, False),
    "in_proj": (QUERY_KEY_VALUE, False),  # `in_proj_weight`, as torch's MultiheadAttention names it
    "gate_up_proj": (("gate_proj", "up_proj"), True),
    "up_gate_proj": (("up_proj", "gate_proj"), True),
    "weights_in": (("gate_proj", "up_proj"), True),
    "w12": (("gate_proj", "up_proj"), True),
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
    r"\.c_attn\.(weight|bias)$": "some families (GPT-2) store it transposed",
    r"\.gate_up_proj_bias$": "gates and ups alternate in it (gpt-oss)",
}
# Split tensors that the above would have to be matched with.
SPLIT = re.compile(r"(^|[._])(q_proj|query|to_q|wq|gate_proj)\.(weight|bias)$")
