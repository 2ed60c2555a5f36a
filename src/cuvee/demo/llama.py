"""A tiny Llama run in NumPy: enough to ask the demo family its questions without torch.

Plain Llama as its config.json describes it: RMS norm, rotary positions, grouped-query attention, SwiGLU;
float32, greedy, with a cache of keys and values. It deliberately knows no other architecture, no sampling and
no merging.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import numpy_dtype
from cuvee.tensors.header import read_header

Array = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

# Prompts of one length are run together, this many at a time: the cache of a batch stays small.
_BATCH = 256


@dataclass(frozen=True)
class Shape:
    """The numbers of config.json that the arithmetic needs."""

    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    epsilon: float
    rope_theta: float
    end: frozenset[int]


@dataclass
class Cache:
    """Keys and values [layers, batch, key_value_heads, room, head_width] of the `length` tokens seen."""

    keys: Array
    values: Array
    length: int = 0


@dataclass(frozen=True)
class Llama:
    """A Llama checkpoint in memory: float32 weights by tensor name, its shape and its tokenizer."""

    shape: Shape
    weights: Mapping[str, Array]
    tokenizer: Tokenizer

    def logits(self, ids: Ids, cache: Cache | None = None) -> Array:
        """Next-token scores [batch, length, vocabulary] after each of `ids` [batch, length].

        Args:
            ids: token ids; with a cache, those that follow the tokens it holds.
            cache: keys and values of earlier tokens; those of `ids` are added to it.
        """
        w, shape = self.weights, self.shape
        cache = cache if cache is not None else self.cache(*ids.shape)
        x = w["model.embed_tokens.weight"][ids]
        rotation = _rotation(shape, cache.length, ids.shape[1])
        for n in range(shape.layers):
            layer = f"model.layers.{n}."
            x = x + self._attend(layer, n, self._norm(x, layer + "input_layernorm"), rotation, cache)
            x = x + self._feed(layer + "mlp.", self._norm(x, layer + "post_attention_layernorm"))
        cache.length += ids.shape[1]
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        scores: Array = self._norm(x, "model.norm") @ head.T
        return scores

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """The greedy continuation of each prompt, in order, up to the end token or `max_new_tokens`."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        answers = [""] * len(rows)
        while order:
            length = len(rows[order[0]])
            taken = [n for n in order[:_BATCH] if len(rows[n]) == length]
            order = order[len(taken) :]
            told = self._greedy(np.array([rows[n] for n in taken]), max_new_tokens)
            for n, text in zip(taken, self.tokenizer.decode_batch(told), strict=True):
                answers[n] = text
        return answers

    def cache(self, batch: int, room: int) -> Cache:
        """An empty cache for `batch` sequences of at most `room` tokens."""
        size = (self.shape.layers, batch, self.shape.key_value_heads, room, self.shape.head_width)
        return Cache(np.empty(size, np.float32), np.empty(size, np.float32))

    def _greedy(self, ids: Ids, max_new_tokens: int) -> list[list[int]]:
        """New token ids of each row of `ids` [batch, length], without the end token."""
        cache = self.cache(len(ids), ids.shape[1] + max_new_tokens)
        ends = np.array(sorted(self.shape.end))
        told: list[Ids] = []
        ended = np.zeros(len(ids), bool)
        while len(told) < max_new_tokens and not ended.all():
            ids = self.logits(ids, cache)[:, -1:].argmax(-1)
            told.append(ids[:, 0])
            ended |= np.isin(told[-1], ends)
        return [_until(row, self.shape.end) for row in np.stack(told, 1).tolist()]

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.shape.epsilon))
        normed: Array = x / scale * self.weights[name + ".weight"]
        return normed

    def _feed(self, name: str, x: Array) -> Array:
        gate = x @ self.weights[name + "gate_proj.weight"].T
        up = x @ self.weights[name + "up_proj.weight"].T
        # SiLU through tanh: exp(-gate) would overflow for very negative gates.
        hidden: Array = gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up
        fed: Array = hidden @ self.weights[name + "down_proj.weight"].T
        return fed

    def _attend(self, layer: str, n: int, x: Array, rotation: tuple[Array, Array], cache: Cache) -> Array:
        """Causal attention of the new tokens `x` [batch, length, width] over the cache and themselves."""
        batch, length, _ = x.shape
        heads, groups, width = self.shape.heads, self.shape.key_value_heads, self.shape.head_width

        def project(name: str, count: int) -> Array:
            flat = x @ self.weights[f"{layer}self_attn.{name}_proj.weight"].T
            split: Array = flat.reshape(batch, length, count, width).swapaxes(1, 2)
            return split

        seen = slice(cache.length, cache.length + length)
        cache.keys[n, :, :, seen] = _rotate(project("k", groups), rotation)
        cache.values[n, :, :, seen] = project("v", groups)
        # [batch, group, its query heads x length, width]: a group's keys serve all its query heads at once.
        queries = _rotate(project("q", heads), rotation).reshape(batch, groups, -1, width)
        scores = queries @ cache.keys[n, :, :, : seen.stop].swapaxes(-1, -2) / np.float32(np.sqrt(width))
        future = np.arange(seen.stop) > np.arange(seen.start, seen.stop)[:, None]
        scores += np.tile(np.where(future, np.float32(-np.inf), np.float32(0)), (heads // groups, 1))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ cache.values[n, :, :, : seen.stop]
        joined = mixed.reshape(batch, heads, length, width).swapaxes(1, 2).reshape(batch, length, -1)
        attended: Array = joined @ self.weights[layer + "self_attn.o_proj.weight"].T
        return attended


def load(folder: Path) -> Llama:
    """The Llama checkpoint in `folder` (config.json, safetensors, tokenizer.json), widened to float32.

    Raises:
        CheckpointError: if it is no Llama.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        raise CheckpointError(
            "the demo runs Llama checkpoints only",
            expected="model_type llama",
            found=f"model_type {config.get('model_type')}",
            where=str(folder),
            checkpoint=str(folder),
        )
    weights: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(_read(file))
    return Llama(_shape(config), weights, Tokenizer.from_file(str(folder / "tokenizer.json")))


def _shape(config: Mapping[str, Any]) -> Shape:
    heads = config["num_attention_heads"]
    # transformers 5 moved the angle's base into a table of rotary parameters.
    rope = config.get("rope_parameters") or config
    ends: list[int] | int = config["eos_token_id"]
    return Shape(
        layers=config["num_hidden_layers"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        epsilon=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", 10000.0),
        end=frozenset(ends if isinstance(ends, list) else [ends]),
    )


def _read(file: Path) -> dict[str, Array]:
    data = file.read_bytes()
    header = read_header(lambda start, stop: data[start:stop], len(data), file.name)
    weights: dict[str, Array] = {}
    for name, entry in header.tensors.items():
        stored = np.frombuffer(data[entry.start : entry.stop], numpy_dtype(entry.dtype))
        weights[name] = stored.astype(np.float32).reshape(entry.shape)
    return weights


def _rotation(shape: Shape, start: int, length: int) -> tuple[Array, Array]:
    """Cosines and sines [length, head_width] of the positions from `start`."""
    rates = shape.rope_theta ** (-np.arange(0, shape.head_width, 2) / shape.head_width)
    angles = np.arange(start, start + length)[:, None] * np.tile(rates, 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    cosine, sine = rotation
    half = x.shape[-1] // 2
    turned: Array = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cosine + turned * sine


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    """The ids before the first end token."""
    return row[: next((n for n, token in enumerate(row) if token in ends), len(row))]
