"""adapter_config.json: checked, and reduced to the numbers that a weight update needs.

Which modules an adapter was meant for (names, a regex, `all-linear`, layers to transform) is of no account here: its
tensors say which modules it has. What would make the update something else than the tensors say is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.adapters.place import CONFIG
from cuvee.errors import CheckpointError

SUPPORTED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "VERA", "LN_TUNING", "TRAINABLE_TOKENS")
# Settings of LoRA under which merged weights are no longer W + s B A (or its DoRA form).
_OTHER_UPDATES = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which acts on some tokens only",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron's parallel layers",
}
_LARGEST = 1e30
# Initialisations that change the base model too, each time that PEFT loads the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says, as far as weights depend on it.

    Attributes:
        kind: PEFT's name of the method: `LORA`, `IA3` and so on.
        rank: `r`; 0 where the method has none.
        alpha: `lora_alpha` (`alpha` of LoHa and LoKr).
        rslora: whether the scaling divides by the root of the rank.
        rank_pattern: regex on module paths -> rank.
        alpha_pattern: regex on module paths -> alpha.
        fan_in_fan_out: whether weights are stored as [in, out].
        dora: whether magnitude vectors are expected.
        base_model: the model that it was trained on, as its trainer called it.
        revision: of that model.
        target_parameters: names of parameters (not modules) that it adapts.
        token_indices: vocabulary rows that it replaces, for each embedding's name (`""` is the input embedding).
        raw: everything, as written.

    """

    kind: str
    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    fan_in_fan_out: bool
    dora: bool
    base_model: str | None
    revision: str | None
    target_parameters: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]
    raw: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        """The rank that the config gives a module: the first pattern that its path ends in, else `r`."""
        return int(_patterned(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """The factor before B A: alpha / r, or alpha / sqrt(r) (rank-stabilised LoRA, arXiv:2312.03732)."""
        if self.kind == "VERA" or not self.rank:
            return 1.0
        alpha, rank = float(_patterned(self.alpha_pattern, module, self.alpha)), self.rank_of(module)
        if self.kind == "ADALORA":
            first = int(self.raw.get("init_r", 12))
            return (alpha if alpha > 0 else float(first)) / (first + 1e-5)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_config(text: bytes, name: str) -> AdapterConfig:
    """The config of the adapter called `name`.

    Raises:
        CheckpointError: if it is corrupt, or asks for an update that is not a closed form of the adapter's tensors.

    """
    raw = _object(text, name)
    kind = raw.get("peft_type")
    if not isinstance(kind, str):
        raise _bad(name, "names no peft_type", found=repr(kind)[:60])
    kind = kind.upper().removeprefix("PEFTTYPE.")
    if kind not in SUPPORTED:
        raise CheckpointError(
            f"adapter {name} is of type {kind}, which cannot be added to weights here",
            expected=", ".join(SUPPORTED),
            fix="merge it into its base with PEFT's merge_and_unload if it has one, and name the result",
            checkpoint=name,
        )
    _refuse_other_updates(raw, name)
    for key in ("modules_to_save", "target_modules"):
        _texts(raw, key, name)
    _number(raw, "init_r", name, int, 12)
    needs_rank = kind not in ("IA3", "LN_TUNING", "TRAINABLE_TOKENS")
    rank = _number(raw, "r", name, int, 8) if needs_rank else 0
    if needs_rank and rank < 1:
        raise _bad(name, "has an impossible rank", expected="r of 1 or more", found=str(rank))
    alpha = "alpha" if kind in ("LOHA", "LOKR") else "lora_alpha"
    return AdapterConfig(
        kind=kind,
        rank=rank,
        alpha=_number(raw, alpha, name, float, 8.0),
        rslora=bool(raw.get("use_rslora")) and kind == "LORA",
        rank_pattern={} if kind == "ADALORA" else _pattern(raw, "rank_pattern", name, int),
        alpha_pattern=_pattern(raw, "alpha_pattern", name, float),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        dora=bool(raw.get("use_dora")),
        base_model=_text(raw.get("base_model_name_or_path")),
        revision=_text(raw.get("revision")),
        target_parameters=_texts(raw, "target_parameters", name),
        token_indices=_token_indices(raw, name),
        raw=raw,
    )


def _refuse_other_updates(raw: Mapping[str, Any], name: str) -> None:
    if other := next((what for key, what in _OTHER_UPDATES.items() if raw.get(key)), None):
        raise CheckpointError(
            f"adapter {name} uses {other}, which is not a fixed change of the base's weights",
            fix="use an adapter without it",
            checkpoint=name,
        )
    start = str(raw.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"adapter {name} was initialised by {start}, which changed the base model too",
            fix="save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it; or, if it "
            "is meant for a base saved after the initialisation, set init_lora_weights to true in its config",
            checkpoint=name,
        )


def _token_indices(raw: Mapping[str, Any], name: str) -> dict[str, tuple[int, ...]]:
    found = raw.get("trainable_token_indices")
    if found is None and str(raw.get("peft_type", "")).upper().endswith("TRAINABLE_TOKENS"):
        found = raw.get("token_indices")
    table = found if isinstance(found, Mapping) else {"": found or ()}
    if not all(isinstance(v, (list, tuple)) and all(type(i) is int and i >= 0 for i in v) for v in table.values()):
        raise _bad(name, "has token indices that are not lists of numbers", found=repr(found)[:60])
    return {str(key): tuple(rows) for key, rows in table.items() if rows}


def _patterned(patterns: Mapping[str, Any], module: str, default: float) -> Any:
    return next((value for key, value in patterns.items() if re.match(_ending(key), module)), default)


def _ending(pattern: str) -> str:
    """What PEFT matches a module's path with."""
    return rf"(.*\.)?({pattern})$"


def _pattern(raw: Mapping[str, Any], key: str, name: str, kind: type[int] | type[float]) -> dict[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, Mapping) or not all(_is_number(value) and kind(value) > 0 for value in table.values()):
        raise _bad(name, f"has a {key} that is not a table of numbers", found=repr(table)[:60])
    for pattern in table:
        try:
            re.compile(_ending(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            what = f"has a {key} that is no regular expression: {pattern[:60]!r}"
            raise _bad(name, what, found=str(error)) from None
    return {pattern: kind(value) for pattern, value in table.items()}


def _number(raw: Mapping[str, Any], key: str, name: str, kind: type[Any], default: float) -> Any:
    value = raw.get(key, default)
    if not _is_number(value) or kind(value) != value:
        raise _bad(name, f"has a {key} that is not a number", found=repr(value)[:60])
    return kind(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _texts(raw: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    value = raw.get(key) or ()
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise _bad(name, f"has a {key} that is not a list of names", found=repr(value)[:60])
    return tuple(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(name, f"is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _bad(name, "is not a JSON object")
    return raw


def _bad(name: str, what: str, **more: Any) -> CheckpointError:
    return CheckpointError(
        f"{CONFIG} of {name} {what}", fix="fetch the adapter again", checkpoint=name, file=CONFIG, **more
    )
