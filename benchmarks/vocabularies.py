"""What a union of two large vocabularies costs: planning time, and the merge's time beside one without a union.

    python benchmarks/vocabularies.py --tokens 150000 --hidden 896 --layers 8

Both merges are of two models with the same layers; the union has more rows to merge, too. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

import cuvee


def tokenizer(count: int, seed: int, shared: float) -> Tokenizer:
    """A BPE tokenizer of `count` tokens in an order of its own; a share of them is the same for every seed."""
    letters = [chr(0x100 + i) for i in range(256)]
    pairs = [(a, b) for a in letters for b in letters]
    chosen = random.Random(0)
    common = [(a + b, c) for a, b in pairs for c in letters[:8]]
    chosen.shuffle(common)
    keep = int(shared * count)
    own = random.Random(seed)
    rest = common[keep:]
    own.shuffle(rest)
    triples = common[:keep] + rest[: count - keep - len(pairs) - 256]
    own.shuffle(triples)
    merges = [*pairs, *triples]
    tokens = [*letters, *(a + b for a, b in merges)]
    return Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))


def model(folder: Path, made: Tokenizer, hidden: int, layers: int, seed: int) -> None:
    """A tied bfloat16 Llama of random weights."""
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"), pretty=False)
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return rng.integers(0x3C00, 0x3D00, shape, dtype=np.uint16).view(ml_dtypes.bfloat16)

    tokens = made.get_vocab_size()
    state = {"model.embed_tokens.weight": matrix(tokens, hidden), "model.norm.weight": matrix(hidden)}
    for layer in range(layers):
        for name, shape in {"q": (hidden, hidden), "o": (hidden, hidden), "up": (5 * hidden, hidden)}.items():
            state[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
        state[f"model.layers.{layer}.down.weight"] = matrix(hidden, 5 * hidden)
    save_file(state, folder / "model.safetensors")
    config = {"vocab_size": tokens, "num_hidden_layers": layers, "tie_word_embeddings": True, "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))


def measured(recipe: dict, out: Path) -> tuple[float, float, float, float]:
    """(planning wall, planning CPU, merging wall, merging CPU), seconds."""
    begin, used = time.perf_counter(), time.process_time()
    cuvee.plan(recipe)
    planning = time.perf_counter() - begin, time.process_time() - used
    begin, used = time.perf_counter(), time.process_time()
    cuvee.merge(recipe, out)
    merging = time.perf_counter() - begin, time.process_time() - used
    shutil.rmtree(out)
    return (*planning, *merging)


def main() -> None:
    """Makes the models, merges them with and without a union by turns, and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--shared", type=float, default=0.6)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="linear", choices=["linear", "ties"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first, second = (tokenizer(given.tokens, seed, given.shared) for seed in (1, 2))
        model(folder / "a", first, given.hidden, given.layers, 1)
        model(folder / "b", second, given.hidden, given.layers, 2)
        model(folder / "twin", first, given.hidden, given.layers, 3)
        found: dict[str, list[tuple[float, ...]]] = {"plain": [], "union": []}
        for _ in range(given.rounds):
            for name, other, more in (("plain", "twin", {}), ("union", "b", {"tokenizer": {"source": "union"}})):
                listed = [{"model": str(folder / n), "parameters": {"weight": 0.5}} for n in ("a", other)]
                recipe = {"merge_method": "linear", "models": listed, **more}
                if given.method == "ties":
                    recipe |= {"merge_method": "ties", "base_model": str(folder / "a"), "parameters": {"density": 0.5}}
                found[name].append(measured(recipe, folder / "out"))
        for name, rows in found.items():
            values = np.median(np.array(rows), axis=0)
            print(name, "plan {:.2f} s wall, {:.2f} s CPU; merge {:.2f} s wall, {:.2f} s CPU".format(*values))


if __name__ == "__main__":
    main()
