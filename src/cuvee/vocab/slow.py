"""Tokenizers that come without a tokenizer.json, converted by transformers: the only use of it here."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Location

_NEEDED = (".model", ".json", ".txt", ".tiktoken")
_MAX_BYTES = 64 << 20


def converted(location: Location, files: Mapping[str, int], name: str) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a checkpoint's other tokenizer files.

    Raises:
        VocabularyError: if transformers is missing or cannot.

    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise VocabularyError(
            f"{name} has no tokenizer.json, and converting its tokenizer needs transformers",
            found=", ".join(sorted(file for file in files if file.endswith(_NEEDED)))[:200],
            fix="pip install 'cuvee[transformers]' sentencepiece protobuf, or save the tokenizer as tokenizer.json",
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        for file, size in files.items():
            if "/" not in file and file.endswith(_NEEDED) and size <= _MAX_BYTES and ".index." not in file:
                shutil.copyfile(location.fetch(file), Path(folder) / file)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
            document: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        except Exception as error:
            raise VocabularyError(
                f"transformers cannot convert the tokenizer of {name}",
                found=f"{type(error).__name__}: {error}".split("\n")[0][:300],
                fix="save it as tokenizer.json (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`), "
                "or install what the message names",
            ) from error
    return document
