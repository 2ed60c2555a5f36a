"""What transformers makes of a checkpoint: whether it loads whole, and what it says. Only this module imports it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.checking.findings import Finding

# What loading a checkpoint that is not right, or a class that is not there, has been seen to raise.
_FAILURES = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, AssertionError)
_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")
_NEW_TOKENS = 32


def installed() -> bool:
    """Whether transformers and torch are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def loads(path: Path, config: Mapping[str, Any]) -> Finding:
    """Whether the checkpoint's own class takes every tensor and misses none; no weight is read."""
    if reason := _reason_to_skip(config):
        return Finding("transformers", "skipped", reason)
    try:
        with _quietly():
            _, told = _class_of(config).from_pretrained(path, device_map="meta", output_loading_info=True)
    except _FAILURES as error:
        return Finding("transformers", "problem", f"does not load: {_first_line(error)}")
    found = {key: sorted(map(str, told.get(key) or ())) for key in _KEYS}
    if any(found.values()):
        parts = [
            f"{len(names)} {key.removesuffix('_keys')} ({', '.join(names[:3])})"
            for key, names in found.items()
            if names
        ]
        return Finding("transformers", "problem", f"loads with tensors {'; '.join(parts)}")
    return Finding("transformers", "ok", f"{_class_of(config).__name__} loads it whole: nothing missing or unexpected")


def generates(path: Path, config: Mapping[str, Any], prompt: str) -> Finding:
    """What the model says after `prompt`, word by most likely word."""
    if reason := _reason_to_skip(config):
        return Finding("generation", "skipped", reason)
    import torch
    import transformers

    try:
        with _quietly(), torch.no_grad():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            model = _class_of(config).from_pretrained(path, dtype="auto").eval()
            tokens = tokenizer(prompt, return_tensors="pt")
            tokens.pop("token_type_ids", None)
            spoken = model.generate(**tokens, max_new_tokens=_NEW_TOKENS, do_sample=False)
            heard = 0 if model.config.is_encoder_decoder else tokens["input_ids"].shape[1]
            text = tokenizer.decode(spoken[0][heard:], skip_special_tokens=True)
    except _FAILURES as error:
        return Finding("generation", "problem", f"does not generate: {_first_line(error)}")
    return Finding("generation", "ok", f"{prompt!r} goes on {text!r}")


def _reason_to_skip(config: Mapping[str, Any]) -> str | None:
    if not installed():
        return "transformers is not installed: pip install 'cuvee[transformers]'"
    if not config.get("architectures"):
        return "config.json names no architecture"
    if config.get("auto_map"):
        return "the model brings code of its own, which is not run"
    return None


def _class_of(config: Mapping[str, Any]) -> Any:
    import transformers

    name = config["architectures"][0]
    found = getattr(transformers, str(name), None)
    if found is None:
        raise ValueError(f"transformers {transformers.__version__} has no class {name}")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and warnings: what matters is told by the finding."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
