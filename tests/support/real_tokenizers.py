"""The published tokenizers that `examples/real_tokenizers.py` prepares, and small models around them."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer as Library

from cuvee.tensors.location import Directory
from cuvee.vocab.tokenizer import Tokenizer, read_tokenizer
from support.tiny_models import llama_state
from support.vocabularies import save_model

ROOT = Path(__file__).resolve().parents[2]


def real_homes() -> dict[str, Path]:
    """Every tokenizer's folder by name."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        made = importlib.import_module("real_tokenizers")
    finally:
        sys.path.remove(str(ROOT / "examples"))
    found: dict[str, Path] = made.all_tokenizers(ROOT / "scratch" / "tokenizers")
    return found


def read_real(home: Path) -> Tokenizer:
    """The tokenizer in a folder, as Cuvee reads it."""
    found = read_tokenizer(Directory(home), home.name)
    assert found is not None
    return found


def save_real(folder: Path, home: Path, read: Tokenizer, seed: int) -> Path:
    """A tiny Llama with random rows for every id, and a published tokenizer's own files beside it."""
    save_model(
        folder,
        Library.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'),
        seed=0,
        rows=read.size,
        hidden=4,
    )
    state = llama_state(layers=1, hidden=4, vocabulary=read.size, seed=seed)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    shutil.copytree(home, folder, dirs_exist_ok=True)
    return folder
