"""A checkpoint of hundreds of billions of parameters that takes no room: true headers, and files of holes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]
_SHARD_BYTES = 8_600_000_000


def deepseek_v3_shapes(layers: int = 61, experts: int = 256) -> dict[str, tuple[int, ...]]:
    """Names and shapes as DeepSeek-V3's (671 B parameters, without the layer for prediction ahead)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (129280, 7168)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.{name}.weight": shape
            for name, shape in {
                "q_a_proj": (1536, 7168), "q_a_layernorm": (1536,), "q_b_proj": (24576, 1536),
                "kv_a_proj_with_mqa": (576, 7168), "kv_a_layernorm": (512,), "kv_b_proj": (32768, 512),
                "o_proj": (7168, 16384),
            }.items()
        }  # fmt: skip
        if layer < 3:
            shapes |= _mlp(f"{prefix}mlp", 18432)
        else:
            shapes[f"{prefix}mlp.gate.weight"] = (experts, 7168)
            shapes[f"{prefix}mlp.gate.e_score_correction_bias"] = (experts,)
            shapes |= _mlp(f"{prefix}mlp.shared_experts", 2048)
            for expert in range(experts):
                shapes |= _mlp(f"{prefix}mlp.experts.{expert}", 2048)
        shapes |= {f"{prefix}{name}_layernorm.weight": (7168,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (7168,), "lm_head.weight": (129280, 7168)}


def _mlp(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, 7168),
        f"{prefix}.up_proj.weight": (inner, 7168),
        f"{prefix}.down_proj.weight": (7168, inner),
    }


def write_hollow(folder: Path, shapes: Shapes, config: Mapping[str, object]) -> Path:
    """A bfloat16 checkpoint with these tensors, index and config; only the headers take room on the disk."""
    folder.mkdir(parents=True)
    shards = list(_shards(shapes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        table, position = {}, 0
        for name in names:
            stop = position + 2 * math.prod(shapes[name])
            table[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [position, stop]}
            position = stop
        header = json.dumps(table).encode()
        with (folder / file).open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            out.truncate(8 + len(header) + position)
    index = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder


def _shards(shapes: Shapes) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        if names and filled + 2 * math.prod(shape) > _SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += 2 * math.prod(shape)
    yield names
