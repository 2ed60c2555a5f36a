"""Models whose vocabularies differ, and recipes for them: what mergekit 0.1.5 made of them is kept in `tests/data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from support.vocabularies import GRAPE, WINE, save_model, tokenizer

RESULTS = Path(__file__).parent.parent / "data" / "mergekit-0.1.5-vocabularies.npz"
KINDS = ("byte-level BPE", "SentencePiece BPE")
SOURCES = ("union", "base", "x")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def trained(kind: str) -> dict[str, str]:
    """tokenizer.json of a base and of two models: with other words, other added tokens, and some of both shared."""
    return {
        "base": tokenizer(kind, WINE, 290, ["<|end|>"]).to_str(),
        "x": tokenizer(kind, WINE + " " + GRAPE, 310, ["<|end|>", "<|x|>"]).to_str(),
        "y": tokenizer(kind, GRAPE, 300, ["<|y|>", "<|x|>", "<|end|>"]).to_str(),
    }


def models(folder: Path, tokenizers: Mapping[str, str]) -> dict[str, Path]:
    """A small Llama around each tokenizer."""
    made = {name: Tokenizer.from_str(text) for name, text in tokenizers.items()}
    return {name: save_model(folder / name, each, seed=seed) for seed, (name, each) in enumerate(made.items())}


def recipe(homes: Mapping[str, Path], source: str) -> dict[str, Any]:
    """The recipe as mergekit and Cuvee read it."""
    weights = {"x": 0.7, "y": 0.4}
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(homes["base"]),
        "models": [{"model": str(homes[name]), "parameters": {"weight": weight}} for name, weight in weights.items()],
        "tokenizer": {"source": str(homes[source]) if source in homes and source != "base" else source},
        "dtype": "float32",  # where mergekit rounds as seldom as Cuvee
    }
