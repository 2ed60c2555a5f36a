"""The output's tokenizer files: an input's as they are, or what changes in them when tokens or the template do.

Texts are composed here and written by `publish`; which tokens there are was decided when the merge was planned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.errors import CheckpointError
from cuvee.publish.config_edit import REMOVE, edit_json, parse_object
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.location import Location
from cuvee.vocab.chat import TEMPLATE_FILE
from cuvee.vocab.output import OutputTokenizer, OutputVocabulary
from cuvee.vocab.special import moved_ids
from cuvee.vocab.tokenizer import FAST, SETTINGS

_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_GENERATION = "generation_config.json"
# Files that hold the ordinary vocabulary and nothing of the added tokens.
_VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "encoder.json", "bpe.codes", "dict.txt",
                 "tekken.json", "normalizer.json")  # fmt: skip
_VOCABULARY_SUFFIXES = (".model", ".spm", ".tiktoken")
_MAX_BYTES = 512 << 20


@dataclass(frozen=True)
class TokenizerFiles:
    """What to write.

    Attributes:
        home: where the tokenizer's files come from; None for the base's.
        texts: files to write instead of, or beside, those of `home`; None leaves one out.
        config_edits: special-token ids in config.json, by path.
        warnings: what the user should know.

    """

    home: Location | None = None
    texts: Mapping[str, str | None] = field(default_factory=dict)
    config_edits: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def tokenizer_files(vocabulary: OutputVocabulary, base: Checkpoint) -> TokenizerFiles:
    """The tokenizer files of a merge whose other files are those of `base`."""
    output = vocabulary.tokenizer
    home = output.start.location if output else base.location
    names = set(output.start.files if output else base.files)
    texts: dict[str, str | None] = {}
    warnings: list[str] = []
    settings: dict[tuple[str, ...], Any] = {}
    if output and output.changed:
        texts[FAST] = output.text
        settings |= _settings_edits(output, names)
        texts |= _other_files(output, home, names)
        if output.model_changed and (stale := sorted(name for name in names if _holds_vocabulary(name))):
            texts |= dict.fromkeys(stale)
            warnings.append(f"not copied, for want of the new tokens: {', '.join(stale)} of {output.start.name}")
    if vocabulary.template is not None:
        texts[TEMPLATE_FILE] = vocabulary.template
        if "chat_template.json" in names:
            texts["chat_template.json"] = None
        settings[("chat_template",)] = vocabulary.template
    if settings and SETTINGS in names:
        texts[SETTINGS] = edit_json(_read(home, SETTINGS), settings)
    edits = _moved(vocabulary, base.config, "config.json")
    if _GENERATION in base.files and vocabulary.base_ids is not None:
        texts[_GENERATION] = edit_json(
            _read(base.location, _GENERATION),
            _moved(vocabulary, _object(base.location, _GENERATION), _GENERATION),
        )
    return TokenizerFiles(home if output else None, texts, edits, tuple(warnings))


def _settings_edits(output: OutputTokenizer, names: set[str]) -> dict[tuple[str, ...], Any]:
    """Changes to tokenizer_config.json: added tokens where it lists them, and nothing that is no longer a token.

    They are listed, too, where a file stays that other programs read in place of tokenizer.json (llama.cpp's converter
    reads tokenizer.model), and nothing else beside it would tell them of new tokens.
    """
    settings = output.start.settings
    edits: dict[tuple[str, ...], Any] = {}
    read_alone = not output.model_changed and _ADDED not in names and any(map(_holds_vocabulary, names))
    if isinstance(settings.get("added_tokens_decoder"), Mapping) or (output.new_added and read_alone):
        numbered = sorted((output.ids[token], token) for token in output.added)
        edits[("added_tokens_decoder",)] = {
            str(number): {"content": token, **output.added[token]} for number, token in numbered
        }
    edits |= _without(settings, output.dropped)
    return edits


def _other_files(output: OutputTokenizer, home: Location, names: set[str]) -> dict[str, str | None]:
    texts: dict[str, str | None] = {}
    if _ADDED in names:
        table = {token: output.ids[token] for token in output.added}
        texts[_ADDED] = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
    if _MAP in names and output.dropped:
        texts[_MAP] = edit_json(_read(home, _MAP), _without(_object(home, _MAP), output.dropped))
    return texts


def _without(settings: Mapping[str, Any], dropped: frozenset[str]) -> dict[tuple[str, ...], Any]:
    """Takes special roles (`eos_token`) from tokens that are not there any more: loading would add them anew."""
    edits: dict[tuple[str, ...], Any] = {}
    for key, value in settings.items() if dropped else ():
        if key.endswith("_token") and _content(value) in dropped:
            edits[(key,)] = REMOVE
        elif key.endswith("special_tokens") and isinstance(value, list):
            kept = [entry for entry in value if _content(entry) not in dropped]
            if len(kept) < len(value):
                edits[(key,)] = kept
    return edits


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, Mapping) else entry


def _holds_vocabulary(name: str) -> bool:
    return name in _VOCABULARIES or (
        "/" not in name and (name.endswith(_VOCABULARY_SUFFIXES) or name.startswith("tokenizer.model."))
    )


def _moved(vocabulary: OutputVocabulary, config: Mapping[str, Any], file: str) -> dict[tuple[str, ...], Any]:
    output = vocabulary.tokenizer
    if output is None or vocabulary.base_ids is None:
        return {}
    if output.start.ids is vocabulary.base_ids:  # the base's own, less some tokens
        return moved_ids(config, vocabulary.base_ids, output.ids, {}, kept=vocabulary.rows or 0)
    donor = _object(output.start.location, file) if file in output.start.files else {}
    return moved_ids(config, vocabulary.base_ids, output.ids, donor)


def _object(home: Location, name: str) -> dict[str, Any]:
    try:
        return parse_object(_read(home, name))
    except CheckpointError as error:
        raise error.at(f"{name} of {home.identity}", file=name) from None


def _read(home: Location, name: str) -> str:
    return home.read(name, 0, _MAX_BYTES).decode(errors="replace")
