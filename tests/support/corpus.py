"""Tiny random models of any class of transformers, built from its config class with every size made small.

Sizes are found by the names of config keys; a few classes need a word more, which stands in `SPECIAL`. What is merged
from them is the tests' affair.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.tiny_models import State

VOCABULARY = 80
HIDDEN = 16

# Patterns of whole config keys -> their small value; the first that matches counts.
_SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|n_words|vocab_size_per_layer_input|.*_vocab_size", VOCABULARY),
    (r"layer_types|layers_block_type|mlp_layer_types|hybrid_override_pattern", None),
    (r"(num_)?hidden_size_per_layer_input", 8),
    (r"(num_hidden|num|encoder|decoder|num_decoder|num_encoder)_layers|n_layers?|depth|num_blocks|n_blocks", 2),
    (r"num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads|attention_heads", 2),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num|num_key_value_groups", 1),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts|num_selected_experts", 2),
    (r"n_group|topk_group|n_shared_experts", 1),
    (r"first_k_dense_replace", 1),
    (r"q_lora_rank|kv_lora_rank", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|head_dim|global_head_dim|d_kv|kv_channels|attention_head_dim", 8),
    (r"(out_)?hidden_size|d_model|n_embd|embedding_size|hidden_dim", HIDDEN),
    (r"((word_)?emb(ed|edding)?_|projection_|vision_output_|out_|word_embed_proj_)?dim", HIDDEN),
    (r"([a-z_]+_)?intermediate_size(_mlp)?|(encoder_|decoder_)?ffn_(dim|size|hidden_size)|d_ff|n_inner|inner_dim", 24),
    (r"dim_feedforward|feat_in", 24),
    (r"max_position_embeddings|n_positions|max_source_positions|max_target_positions|max_sequence_length|n_ctx", 64),
    (r"image_size", 32),
    (r"patch_size", 16),
    (r"num_mel_bins|feature_size|num_channels_mel", 8),
    (r"conv_dim", [8, 8]),
    (r"conv_stride", [2, 2]),
    (r"conv_kernel", [3, 3]),
    (r"num_feat_extract_layers", 2),
    (r"num_conv_pos_embeddings", 4),
    (r"num_conv_pos_embedding_groups", 2),
    (r"num_register_tokens|num_query_tokens|num_latents", 2),
)  # fmt: skip
# What single classes need beside small sizes; `text_config.key` is a key of that part.
SPECIAL: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "GraniteMoeHybridForCausalLM": {
        "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "layer_types": ["mamba", "attention"],
    },
    "JambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                         "expert_layer_period": 2, "expert_layer_offset": 1},
    "NemotronHForCausalLM": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8,
                             "layers_block_type": ["mamba", "attention", "moe", "mamba"], "num_hidden_layers": 4},
    "Mamba2ForCausalLM": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "MambaForCausalLM": {"state_size": 8},
    "FalconMambaForCausalLM": {"state_size": 8},
    "ZambaForCausalLM": {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "mamba"], "mamba_d_state": 8,
                         "n_mamba_heads": 2, "attention_hidden_size": 32, "attention_head_dim": 16},
    "DiffLlamaForCausalLM": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Qwen3NextForCausalLM": {
        "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "MinistralForCausalLM": {"head_dim": 8},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "NemotronForCausalLM": {"head_dim": 8, "num_key_value_heads": 1},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1},
    "DbrxForCausalLM": {"attn_config": {"kv_n_heads": 1, "rope_theta": 1e4},
                        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}},
    "EsmForMaskedLM": {"vocab_size": VOCABULARY, "pad_token_id": 1},
    "Llama4ForConditionalGeneration": {"vision_config.intermediate_size": 64, "vision_config.projector_input_dim": 16,
                                       "vision_config.projector_output_dim": 16,
                                       "vision_config.vision_output_dim": 16},
}  # fmt: skip


def tiny(name: str) -> Any:
    """A random model of the class called `name`."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    config = small_config(kind.config_class, SPECIAL.get(name, {}))
    torch.manual_seed(3)
    model = kind(config)
    return model.eval()


def small_config(kind: Any, more: Mapping[str, Any]) -> Any:
    """The config of a class with all its sizes, and those of its parts, made small."""
    return kind(**_small(kind, more))


def _small(kind: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    accepted = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "attribute_map", {}))
    accepted |= set(getattr(kind, "__dataclass_fields__", {}))
    default = kind()
    chosen: dict[str, Any] = {}
    for key in sorted(accepted):
        value = getattr(default, key, None)
        if (small := _small_value(key, value)) is not None:
            chosen[key] = small
    for key, part in getattr(kind, "sub_configs", {}).items():
        own = getattr(default, key, None)
        actual = type(own) if own is not None and hasattr(own, "to_dict") else part
        if getattr(actual, "__name__", "AutoConfig") not in ("AutoConfig", "PreTrainedConfig"):
            inner = _small(actual, {k.partition(".")[2]: v for k, v in more.items() if k.startswith(key + ".")})
            chosen[key] = {"model_type": actual.model_type, **inner}
    chosen |= {key: value for key, value in more.items() if "." not in key}
    return {key: value for key, value in chosen.items() if value is not ...}


def _small_value(key: str, value: Any) -> Any:
    if key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and not isinstance(value, bool):
        return min(value, sum(map(ord, key)) % (VOCABULARY - 10) + 3)
    if key.endswith("_token_id") and isinstance(value, list):
        return [min(v, 5) for v in value]
    for pattern, small in _SIZES:
        if re.fullmatch(pattern, key):
            if small is None:
                return None
            if isinstance(small, list):
                return small if isinstance(value, (list, tuple)) and value else None
            return small if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    return None


def save_siblings(model: Any, folder: Path) -> tuple[Path, Path]:
    """The model as transformers saves it, and a sibling whose floats differ by a tenth."""
    first, second = folder / "first", folder / "second"
    model.save_pretrained(first)
    shutil.copytree(first, second)
    for file in second.glob("*.safetensors"):
        save_file(_perturbed(load_file(file)), file, {"format": "pt"})
    return first, second


def reload(kind: Any, folder: Path) -> tuple[int, dict[str, list[str]]]:
    """Parameters of the model that transformers loads from a folder, and what it found amiss."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    return parameters(model), {key: sorted(map(str, found)) for key, found in info.items() if found}


def parameters(model: Any) -> int:
    """How many parameters a model has, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _perturbed(state: State) -> State:
    random = np.random.default_rng(5)
    return {
        name: np.asarray(tensor + 0.1 * random.standard_normal(tensor.shape), tensor.dtype)
        if np.issubdtype(tensor.dtype, np.floating)
        else tensor
        for name, tensor in state.items()
    }
