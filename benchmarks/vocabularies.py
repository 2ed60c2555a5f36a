"""What a union of two large vocabularies costs: planning time, and the merge's time beside one without a union.

    python benchmarks/vocabularies.py --tokens 150000 --method linear

Three models of Qwen2.5-0.5B's shape (494 M parameters, tied) are merged: all of one vocabulary, and with one of them of
another. The union has more rows to merge, too; `longer` is a merge without a union of models with that many rows. CPU
time counts worker processes. Planning a union makes its tokenizer, too. Run it on a quiet machine.

`--size 1.5b` takes Qwen2.5-1.5B's shape, and 16 GB of page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

import cuvee

LETTERS = [chr(0x100 + number) for number in range(256)]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.5}},
}


SHAPES = {"0.5b": (896, 128, 4864, 24), "1.5b": (1536, 256, 8960, 28)}
"""Width, width of keys and values, width of the feed-forward part, layers."""


def tokenizer(count: int, seed: int, shared: float) -> Tokenizer:
    """A BPE tokenizer of `count` tokens in an order of its own; a share of them is the same for every seed."""
    pairs = list(product(LETTERS, LETTERS))
    triples = [(first + second, third) for (first, second), third in product(pairs, LETTERS[:8])]
    random.Random(0).shuffle(triples)
    wanted = count - len(LETTERS) - len(pairs)
    keep = max(int(shared * count) - len(LETTERS) - len(pairs), 0)
    if not 0 <= keep <= wanted <= len(triples):
        raise SystemExit(f"--tokens must lie between {len(LETTERS) + len(pairs)} and {len(LETTERS) + 9 * len(pairs)}")
    own = random.Random(seed)
    chosen = triples[:keep] + own.sample(triples[keep:], wanted - keep)
    own.shuffle(pairs)
    own.shuffle(chosen)
    merges = [*pairs, *chosen]
    tokens = [*LETTERS, *(first + second for first, second in merges)]
    return Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))


def model(folder: Path, made: Tokenizer | None, rows: int, seed: int, size: str) -> Path:
    """A tied bfloat16 model of one of Qwen2.5's shapes and of random weights."""
    width, narrow, wide, layers = SHAPES[size]
    folder.mkdir(parents=True)
    if made is not None:
        made.save(str(folder / "tokenizer.json"), pretty=False)
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return rng.integers(0x3C00, 0x3D00, shape, dtype=np.uint16).view(ml_dtypes.bfloat16)

    state = {"model.embed_tokens.weight": matrix(rows, width), "model.norm.weight": matrix(width)}
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width),
              "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width),
              "mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width),
              "mlp.down_proj": (width, wide)}  # fmt: skip
    for layer in range(layers):
        for name, shape in shapes.items():
            state[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
    save_file(state, folder / "model.safetensors")
    config = {"vocab_size": rows, "num_hidden_layers": layers, "tie_word_embeddings": True, "hidden_size": width}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], **config}))
    return folder


def cpu() -> float:
    """CPU seconds of this process and the ones it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measured(recipe: dict[str, Any], out: Path) -> tuple[float, float, float, float]:
    """(planning wall, planning CPU, merging wall, merging CPU), seconds."""
    begin, used = time.perf_counter(), cpu()
    cuvee.plan(recipe)
    planning = time.perf_counter() - begin, cpu() - used
    begin, used = time.perf_counter(), cpu()
    cuvee.merge(recipe, out)
    merging = time.perf_counter() - begin, cpu() - used
    shutil.rmtree(out)
    return (*planning, *merging)


def recipe_of(method: str, models: Sequence[Path], **more: Any) -> dict[str, Any]:
    """A recipe for these models, the first of which is the base where the method has one."""
    base = {} if method == "linear" else {"base_model": str(models[0])}
    listed = models[1:] if base else models
    return {
        **METHODS[method],
        **base,
        "models": [{"model": str(model), "parameters": {"weight": 0.3}} for model in listed],
        **more,
    }


def main() -> None:
    """Makes the models, merges them with and without a union by turns, and prints the least of each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--shared", type=float, default=0.6)
    parser.add_argument("--size", default="0.5b", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="linear", choices=sorted(METHODS))
    parser.add_argument("--longer", action="store_true", help="also merge models with as many rows as the union has")
    parser.add_argument("--folder", type=Path, help="where models are made, or were by an earlier run; kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        first, second = (tokenizer(given.tokens, seed, given.shared) for seed in (1, 2))
        joined = len(first.get_vocab().keys() | second.get_vocab().keys())
        made = {"base": first, "twin": first, "other": first, "b": second}
        if given.longer:
            made |= {"long1": None, "long2": None, "long3": None}
        for seed, (name, vocabulary) in enumerate(made.items()):
            if not (folder / name).exists():
                model(folder / name, vocabulary, given.tokens if vocabulary else joined, seed, given.size)
        print(f"{given.tokens} tokens each, {joined} together")
        homes = {name: folder / name for name in made}
        wanted = {"plain": recipe_of(given.method, [homes[name] for name in ("base", "twin", "other")])}
        others = [homes[name] for name in ("base", "twin", "b")]
        wanted["union"] = recipe_of(given.method, others, tokenizer={"source": "union"})
        if given.longer:
            wanted["longer"] = recipe_of(given.method, [homes[name] for name in ("long1", "long2", "long3")])
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in wanted}
        for _ in range(given.rounds):
            for name, recipe in wanted.items():
                found[name].append(measured(recipe, folder / "out"))
        for name, rows in found.items():
            values = np.array(rows).min(axis=0)
            print(name, "plan {:.2f} s wall, {:.2f} s CPU; merge {:.2f} s wall, {:.2f} s CPU".format(*values))


if __name__ == "__main__":
    main()
