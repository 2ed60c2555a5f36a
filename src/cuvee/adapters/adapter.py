"""An adapter opened by its headers: for every module the tensors of its update, and the tensors it brings whole.

What a base model looks like is not known here; `views` puts the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from cuvee.adapters.config import AdapterConfig, read_config
from cuvee.adapters.keys import parse_key
from cuvee.adapters.place import CONFIG
from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import is_float
from cuvee.tensors.header import read_header
from cuvee.tensors.location import Location, some_of
from cuvee.tensors.sources import Stored

_SAFE, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class AdapterModule:
    """What an adapter does to one module.

    Attributes:
        path: the module's path in the model that the adapter was made for.
        parts: PEFT's name of the part (`lora_A`, `lora_magnitude_vector`, `lora_B.bias`) -> where it lies.
        scaling: the factor before B A.

    """

    path: str
    parts: Mapping[str, Stored]
    scaling: float

    @property
    def a(self) -> Stored | None:
        """LoRA's A `[rank, in]`, of linear modules and embeddings alike."""
        return self.parts.get("lora_A") or self.parts.get("lora_embedding_A")

    @property
    def b(self) -> Stored | None:
        """LoRA's B `[out, rank]`, of linear modules and embeddings alike."""
        return self.parts.get("lora_B") or self.parts.get("lora_embedding_B")

    @property
    def is_embedding(self) -> bool:
        """Whether the weight is `[in, out]`, as embeddings are: its update is (B A) transposed."""
        return "lora_embedding_A" in self.parts

    @property
    def rank(self) -> int:
        """The rank of B A; 0 where there is none."""
        return self.a.shape[0] if self.a else 0


@dataclass(frozen=True)
class Adapter:
    """One opened adapter.

    Attributes:
        name: what the user called it.
        location: where its files lie.
        config: what adapter_config.json says.
        modules: module path -> its update.
        whole: tensors that take the place of the base model's, by the base model's names.
        shared: tensors that all modules use (VeRA's projections), by PEFT's names.
        files: size in bytes of every file by relative name.
        weight_file: the file of its tensors, relative; and under the name that plans use.

    """

    name: str
    location: Location
    config: AdapterConfig
    modules: Mapping[str, AdapterModule]
    whole: Mapping[str, Stored]
    shared: Mapping[str, Stored]
    files: Mapping[str, int]
    weight_file: tuple[str, str]

    @property
    def identity(self) -> str:
        """What this adapter is, beyond doubt: an absolute path, or `hf://repository@commit`."""
        return self.location.identity

    @cached_property
    def tensors(self) -> tuple[Stored, ...]:
        """Every tensor that counts."""
        parts = [part for module in self.modules.values() for part in module.parts.values()]
        return (*parts, *self.whole.values(), *self.shared.values())


def open_adapter(location: Location, name: str, converted: Path | None = None) -> Adapter:
    """The adapter at `location`; nothing but its config and headers is read.

    Args:
        location: where the files lie.
        name: what to call it in messages.
        converted: a folder for state dicts that had to be rewritten before they can be read in ranges.

    Raises:
        CheckpointError: if config or weights are missing, corrupt, or of a kind that is not supported.

    """
    files = location.sizes()
    if CONFIG not in files:
        raise CheckpointError(
            f"{name} is not an adapter: it has no {CONFIG}",
            expected=f"{CONFIG} and {_SAFE}, as PEFT saves them",
            found=some_of(files),
            checkpoint=name,
        )
    try:
        config = read_config(location.read(CONFIG, 0, _MAX_CONFIG_BYTES), name)
        stored, weight_file = _read_tensors(location, files, converted, name)
        modules, whole, shared = _sorted_out(stored, config, name)
    except CheckpointError as error:
        raise error.at(f"adapter {name}", checkpoint=name) from error
    return Adapter(name, location, config, modules, whole, shared, files, weight_file)


def _read_tensors(
    location: Location, files: Mapping[str, int], converted: Path | None, name: str
) -> tuple[dict[str, Stored], tuple[str, str]]:
    if _SAFE in files:
        header = read_header(partial(location.read, _SAFE), files[_SAFE], _SAFE)
        uri = location.uri(_SAFE)
        return {k: Stored(uri, e.start, e.dtype, e.shape) for k, e in header.tensors.items()}, (_SAFE, uri)
    if _PICKLE in files:
        from cuvee.tensors.pickled import read_state_dict_layout

        found = read_state_dict_layout(location.fetch(_PICKLE), converted)
        return found, ("", next((stored.file for stored in found.values()), ""))
    raise CheckpointError(
        f"adapter {name} holds no weights",
        expected=f"{_SAFE} or {_PICKLE}",
        found=some_of(files),
        checkpoint=name,
    )


def _sorted_out(
    stored: Mapping[str, Stored], config: AdapterConfig, name: str
) -> tuple[dict[str, AdapterModule], dict[str, Stored], dict[str, Stored]]:
    """The tensors by what they are: of modules, whole, shared."""
    parts: dict[str, dict[str, Stored]] = {}
    whole: dict[str, Stored] = {}
    shared: dict[str, Stored] = {}
    for key, place in stored.items():
        meaning = parse_key(key)
        if meaning is None:
            continue
        if meaning.part and not is_float(place.dtype):
            raise CheckpointError(f"tensor {key!r} of adapter {name} is of dtype {place.dtype}", tensor=key)
        table = whole if not meaning.part else parts.setdefault(meaning.module, {}) if meaning.module else shared
        own = meaning.part or meaning.module
        if own in table and not meaning.part and ".modules_to_save." not in key:
            continue  # PEFT saved the trained module and, as an embedding, the one that it stands for
        if own in table and meaning.part:
            raise CheckpointError(
                f"adapter {name} holds {own} of {meaning.module} twice",
                found=key,
                fix="save one adapter by itself, with PEFT's save_pretrained",
                tensor=key,
            )
        table[own] = place
    modules = {path: AdapterModule(path, own, config.scaling_of(path)) for path, own in parts.items()}
    for module in modules.values():
        _check_factors(module, config, name)
    if not modules and not whole:
        raise CheckpointError(f"adapter {name} holds no tensors", fix="fetch or save the adapter again")
    return modules, whole, shared


def _check_factors(module: AdapterModule, config: AdapterConfig, name: str) -> None:
    """LoRA's A and B must both be there, fit each other, and have the rank that the config says."""
    a, b = module.a, module.b
    if config.kind not in ("LORA", "ADALORA") or set(module.parts) == {"trainable_tokens_delta"}:
        return
    if a is None or b is None:
        missing = "A" if a is None else "B"
        raise CheckpointError(
            f"adapter {name} lacks LoRA's {missing} of {module.path}",
            found=", ".join(sorted(module.parts)),
            fix="fetch or save the adapter again",
            tensor=module.path,
        )
    if len(a.shape) < 2 or len(b.shape) < 2 or 0 in (*a.shape, *b.shape) or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"A and B of {module.path} in adapter {name} do not fit each other",
            expected="A [rank, in] and B [out, rank]",
            found=f"A {list(a.shape)}, B {list(b.shape)}",
            fix="fetch or save the adapter again (DeepSpeed and FSDP shards must be gathered first)",
            tensor=module.path,
        )
    if config.dora and "lora_magnitude_vector" not in module.parts:
        raise CheckpointError(
            f"adapter {name} lacks DoRA's magnitude vector of {module.path}",
            expected=f"one, since {CONFIG} says use_dora",
            found=", ".join(sorted(module.parts)),
            fix="fetch or save the adapter again; or set use_dora to false if it was trained without",
            tensor=module.path,
        )
    rank = config.rank_of(module.path)
    if config.kind == "LORA" and a.shape[0] != rank and not config.target_parameters:
        raise CheckpointError(
            f"the rank of {module.path} in adapter {name} is not what its config says",
            expected=f"rank {rank} (r and rank_pattern of {CONFIG})",
            found=f"rank {a.shape[0]}",
            fix="use the config that belongs to these weights: the scaling depends on it",
            tensor=module.path,
        )
