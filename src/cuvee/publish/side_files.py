"""The files of a checkpoint that belong beside merged weights: which of them go along, and their copies.

Chosen by name before a byte is written, so that a refusal comes early. What the files say is not known here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from cuvee.errors import CheckpointError
from cuvee.tensors import disk
from cuvee.tensors.location import Location

MAX_SIDE_FILE_BYTES = 512 << 20

_Kind = Literal["tokenizer", "settings", "licence", "code"]

# Patterns of whole names; `*` stays within the top directory because only listed directories are looked into.
_TOKENIZER = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tekken.json",
    ),
    *(
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "vocab.bpe",
        "encoder.json",
        "bpe.codes",
        "dict.txt",
        "normalizer.json",
    ),
    *("*.model", "tokenizer.model.*", "*.spm", "*.tiktoken", "emoji.json", "entity_vocab.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_SETTINGS = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor*.json"),
    *(
        "video_preprocessor_config.json",
        "video_processor*.json",
        "feature_extractor*.json",
        "audio_processor*.json",
    ),
    *(
        "modules.json",
        "sentence_bert_config.json",
        "sentence_*_config.json",
        "config_sentence_transformers.json",
    ),
)
_LICENCE = re.compile(
    r"(licen[sc]e|(third[-_ ]party[-_ ])?notices?|copying|use_policy)([-_ ][\w-]+)?(\.(txt|md|rst|pdf))?",
    re.IGNORECASE,
)
_TEMPLATES = "additional_chat_templates"
# sentence-transformers gives each further module a numbered folder: 1_Pooling, 2_Dense.
_MODULE = re.compile(r"\d+_\w+")
# A pickle of protocol 2 to 5, and the zip file that torch.save writes: neither is a sentencepiece model.
_PICKLE_STARTS = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"PK\x03\x04")


@dataclass(frozen=True)
class SideFiles:
    """What goes along, by name in the output, and what the user should know about the rest."""

    sources: Mapping[str, Location]
    warnings: tuple[str, ...]


def choose_side_files(
    base: Location,
    *,
    tokenizer_from: Location | None = None,
    copy_tokenizer: bool = True,
    trust_remote_code: bool = False,
) -> SideFiles:
    """The files that go along with a merge: tokenizer, templates, processors, settings, licences, code.

    Weights, indexes, optimizer states, READMEs, pickles and other folders never do.

    Args:
        base: the checkpoint whose files go along.
        tokenizer_from: where the tokenizer's files come from instead.
        copy_tokenizer: whether the tokenizer's files (chat templates included) go along.
        trust_remote_code: whether Python files go along; without it they are only named in a warning.

    Raises:
        CheckpointError: if the name of a file that should go along leads elsewhere, or the file is too large.
    """
    chosen = _of_kinds(base, {"settings", "licence", "code"})
    warnings: list[str] = []
    if copy_tokenizer:
        home = tokenizer_from or base
        names = _of_kinds(home, {"tokenizer"})
        pickles = [name for name in names if _is_pickle(name, home)]
        warnings += [f"{name} of {home.identity} was not copied: it is a pickle" for name in pickles]
        if tokenizer_from and len(names) == len(pickles):
            warnings.append(f"{home.identity} holds no tokenizer files: the merged model has no tokenizer")
        names |= {name: home for name in _of_kinds(home, {"code"}) if name.startswith("tokenization")}
        chosen |= {name: home for name in names if name not in pickles}
    code = [name for name in chosen if _kind(name) == "code"]
    if code and not trust_remote_code:
        chosen = {name: home for name, home in chosen.items() if name not in code}
        warnings.append(
            f"code was not copied: {', '.join(sorted(code))}; "
            "if the merged model needs it and you trust it, pass --trust-remote-code"
        )
    return SideFiles(dict(sorted(chosen.items())), tuple(warnings))


def choose_tokenizer_files(home: Location) -> SideFiles:
    """The tokenizer's files alone, chat templates included: what belongs beside an adapter.

    Raises:
        CheckpointError: as `choose_side_files` does.
    """
    names = _of_kinds(home, {"tokenizer"})
    return SideFiles({name: home for name in sorted(names) if not _is_pickle(name, home)}, ())


def copy_side_files(chosen: SideFiles, out: Path) -> tuple[str, ...]:
    """The names of the files that now lie in `out`, each copied whole and durably.

    Raises:
        CheckpointError: if a file cannot be read, or got shorter meanwhile.
        OutputError: if one cannot be written.
    """
    for name, home in chosen.sources.items():
        _copy(home.fetch(name), out.joinpath(*name.split("/")), name)
    return tuple(chosen.sources)


def _of_kinds(home: Location, kinds: set[_Kind]) -> dict[str, Location]:
    """The files of some kinds, checked to be copyable."""
    found: dict[str, Location] = {}
    sizes = home.sizes()
    for name, size in sizes.items():
        if "/" in name and "modules.json" not in sizes and _MODULE.fullmatch(name.split("/")[0]):
            continue  # a numbered folder means something only to sentence-transformers
        if _leads_elsewhere(name):
            if _kind(re.split(r"[/\\:]", name)[-1]) in kinds:
                raise CheckpointError(
                    f"a file's name leads out of the checkpoint: {name!r}",
                    expected="a plain relative name",
                    where=home.identity,
                    fix="rename or remove the file",
                    checkpoint=home.identity,
                    file=name,
                )
        elif _kind(name) in kinds:
            if size > MAX_SIDE_FILE_BYTES:
                raise CheckpointError(
                    f"{name} is too large to be what its name says",
                    expected=f"at most {MAX_SIDE_FILE_BYTES >> 20} MiB",
                    found=f"{size >> 20} MiB",
                    where=home.identity,
                    fix="check the file; a tokenizer can be left out with --no-copy-tokenizer",
                    checkpoint=home.identity,
                    file=name,
                )
            target = home.link_target(name)
            if target is not None and target.name != name.rpartition("/")[2]:
                raise CheckpointError(
                    f"{name} is a link to a file of another name outside the checkpoint",
                    expected="a file, a link within the checkpoint, or one to a file of the same name",
                    found=str(target),
                    where=home.identity,
                    fix=f"put a copy in its place if {target.name} is really meant to go along with the merge",
                    checkpoint=home.identity,
                    file=name,
                )
            found[name] = home
    return found


def _kind(name: str) -> _Kind | None:
    """What a file is by its name; None if it does not go along."""
    folder, _, file = name.rpartition("/")
    if folder:
        if folder == _TEMPLATES and file.endswith(".jinja"):
            return "tokenizer"
        return "settings" if _MODULE.fullmatch(folder) and file == "config.json" else None
    if _matches(name, _TOKENIZER):
        return "tokenizer"
    if _matches(name, _SETTINGS):
        return "settings"
    if _LICENCE.fullmatch(name):
        return "licence"
    return "code" if name.endswith(".py") else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _leads_elsewhere(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or any(sign in name for sign in "\\:\0")


def _is_pickle(name: str, home: Location) -> bool:
    return ".model" in name and home.read(name, 0, 4).startswith(_PICKLE_STARTS)


def _copy(source: Path, target: Path, name: str) -> None:
    disk.write_file(target, b"")
    with disk.descriptor_of(source) as reading:
        writing = disk.open_to_write(target)
        try:
            disk.copy_range(reading, 0, writing, 0, os.fstat(reading).st_size, name, target)
            disk.sync(writing, target)
        finally:
            os.close(writing)
