"""Random checkpoints shaped like Qwen2.5-0.5B: a base and three fine-tunes, the same bytes on every machine.

Values are what merging sees in practice: weights around 0.02, a fine-tune is the base plus a twentieth of that,
everything rounded to bfloat16. They are drawn chunk by chunk, each chunk from a seed of its own, so any number of
threads writes the same file in little memory. Run as a script, so that the benchmark's own process stays small (see
measure.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

MODELS = ("base", "a", "b", "c")
CHUNK_ELEMENTS = 1 << 21
WEIGHT_SCALE, DELTA_SCALE = 0.02, 0.001
_VERSION = 1


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "full": Shape(layers=24, hidden=896, intermediate=4864, heads=14, kv_heads=2, vocabulary=151936),
    "small": Shape(layers=6, hidden=896, intermediate=4864, heads=14, kv_heads=2, vocabulary=16384),
    "tiny": Shape(layers=3, hidden=128, intermediate=320, heads=4, kv_heads=2, vocabulary=1024),
}


def tensor_shapes(shape: Shape, layers: int | None = None) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model by name, in file order; `layers` stands in for the shape's own count."""
    hidden, inner, kv = shape.hidden, shape.intermediate, shape.hidden // shape.heads * shape.kv_heads
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for index in range(shape.layers if layers is None else layers):
        tensors |= {f"model.layers.{index}.{name}": size for name, size in layer.items()}
    return tensors | {"model.norm.weight": (hidden,)}


def parameter_count(shape: Shape) -> int:
    """The number of parameters of one model."""
    return sum(math.prod(size) for size in tensor_shapes(shape).values())


def make_models(folder: Path, shape: Shape, *, threads: int = 2) -> bool:
    """Whether anything had to be made: afterwards `folder` holds the four models, kept if they were there."""
    stamp = folder / "made.json"
    recorded = json.dumps({"version": _VERSION, **asdict(shape)})
    if stamp.is_file() and stamp.read_text() == recorded:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    header, starts, total = _header(shape)
    files = []
    for model in MODELS:
        (folder / model).mkdir(exist_ok=True)
        (folder / model / "config.json").write_text(json.dumps(_config(shape), indent=2) + "\n")
        file = os.open(folder / model / "model.safetensors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(file, header, 0)
        os.truncate(file, len(header) + total)
        files.append(file)
    chunks = [
        (
            tensor,
            chunk,
            name,
            start + 2 * chunk * CHUNK_ELEMENTS,
            min(CHUNK_ELEMENTS, count - chunk * CHUNK_ELEMENTS),
        )
        for tensor, (name, (start, count)) in enumerate(starts.items())
        for chunk in range(-(-count // CHUNK_ELEMENTS))
    ]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda chunk: _write_chunk(files, *chunk), chunks):
            pass
    for file in files:
        os.close(file)
    stamp.write_text(recorded)
    return True


def _write_chunk(files: list[int], tensor: int, chunk: int, name: str, position: int, count: int) -> None:
    """Draws one run of elements and writes it into every model."""
    # Here, not above: speed.py imports this module for its shapes and must stay small.
    import ml_dtypes
    import numpy as np

    def normal(model: int, scale: float) -> np.ndarray:
        values = np.random.Generator(np.random.SFC64([tensor, chunk, model])).standard_normal(count, np.float32)
        values *= np.float32(scale)
        return values

    base = normal(0, WEIGHT_SCALE)
    if name.endswith("norm.weight"):
        base += np.float32(1)
    for model, file in enumerate(files):
        values = base if model == 0 else base + normal(model, DELTA_SCALE)
        os.pwrite(file, values.astype(ml_dtypes.bfloat16).tobytes(), position)


def _header(shape: Shape) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """The header's bytes, (position, elements) of each tensor in the file, and the number of data bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, offset = {}, 0
    for name, size in tensor_shapes(shape).items():
        count = math.prod(size)
        table[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, offset + 2 * count]}
        places[name] = (offset, count)
        offset += 2 * count
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: (len(header) + start, count) for name, (start, count) in places.items()}, offset


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": shape.vocabulary - 1,
        "eos_token_id": shape.vocabulary - 1,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": WEIGHT_SCALE,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": shape.layers,
        "model_type": "qwen2",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="full")
    options = parser.parse_args()
    made = make_models(options.folder, SHAPES[options.size], threads=os.cpu_count() or 1)
    print(f"{options.folder}: {'made' if made else 'already there'}")


if __name__ == "__main__":
    main()
