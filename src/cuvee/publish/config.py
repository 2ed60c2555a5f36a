"""The merged model's config.json: the base's text, its dtype, layer counts and vocabulary size updated.

Which paths change with the layers is the layout's knowledge and comes in as an argument: no architecture is known
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.publish.config_edit import edit_json, parse_object

# transformers wrote `torch_dtype` up to 4.55 and writes `dtype` since; it reads both.
_DTYPE_KEYS = ("torch_dtype", "dtype")
# What the language part's own config is called in models of several parts.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")
# Ends in `_config`, but tells how weights are packed rather than what a part of the model is.
_NOT_PARTS = ("quantization_config", "compression_config")

_Path = tuple[str, ...]


def merged_config_text(
    base_config_text: str,
    *,
    dtype: str | None,
    edits: Mapping[tuple[str, ...], object],
    vocab_size: int | None,
) -> str:
    """The merged model's config.json.

    Args:
        base_config_text: the base model's config.json; everything not named below keeps its bytes.
        dtype: torch's name of the dtype of the merged weights (`bfloat16`), written wherever the config or
            that of a part names a dtype, and added as `torch_dtype` where none does; None leaves them.
        edits: path in the config -> new value: numbers of layers, lists with one entry a layer.
        vocab_size: rows of the merged embedding, written for the model and its language part; None leaves it.

    Raises:
        CheckpointError: if the config is not a JSON object.
    """
    config = parse_object(base_config_text)
    changes: dict[_Path, object] = {}
    if dtype is not None:
        changes.update(dict.fromkeys(_dtype_paths(config), dtype))
    changes.update(edits)
    if vocab_size is not None:
        changes.update(dict.fromkeys(_vocabulary_paths(config), vocab_size))
    return edit_json(base_config_text, changes)


def _dtype_paths(config: Mapping[str, Any]) -> list[_Path]:
    found = {(*path, key): part[key] for path, part in _parts((), config) for key in _DTYPE_KEYS if key in part}
    named = [path for path, dtype in found.items() if dtype is not None]  # parts may leave it to the whole model
    return named or list(found) or [("torch_dtype",)]


def _vocabulary_paths(config: Mapping[str, Any]) -> list[_Path]:
    homes = [(path, part) for path, part in _parts((), config) if not path or path[-1] in _TEXT_CONFIGS]
    found = [(*path, "vocab_size") for path, part in homes if "vocab_size" in part]
    # Where no config names it a default applied: the language part's, if there is one, is what counts.
    return found or [(*homes[-1][0], "vocab_size")]


def _parts(path: _Path, config: Mapping[str, Any]) -> Iterator[tuple[_Path, Mapping[str, Any]]]:
    """The config and those of its parts (`text_config`, `thinker_config.text_config`), each with its path."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key not in _NOT_PARTS:
            yield from _parts((*path, key), value)
