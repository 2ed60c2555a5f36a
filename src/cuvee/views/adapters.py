"""A base model with an adapter on it, as one checkpoint: nothing is merged, its tensors are expressions.

Every tensor of the adapter must find its place; what does not is refused by name. A tied head stays tied unless the
adapter tells it apart from the embedding: then it becomes a tensor of its own, as it is while the adapter runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cuvee.adapters.adapter import Adapter, AdapterModule
from cuvee.errors import PlanError
from cuvee.layout.configs import parts, roles, ties_embeddings
from cuvee.layout.facts import HEADS
from cuvee.layout.ties import head_name, input_embedding, is_head, tied_to
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.location import Location
from cuvee.tensors.reference import WITH_ADAPTER
from cuvee.tensors.sources import Source
from cuvee.views.adapter_experts import expert_pieces, expert_updates
from cuvee.views.adapter_names import BaseNames
from cuvee.views.adapter_updates import ONLY_TOKENS, Target, misfit, named_base, token_indices, updated
from cuvee.views.overlay import Overlay
from cuvee.views.tied import same_values

_VOCABULARY = re.compile(r"(embed|wte|word_embeddings|shared|lm_head|output)[^.]*\.weight$", re.IGNORECASE)
_TOKENIZER = re.compile(
    r"tokenizer[^/]*|special_tokens_map\.json|added_tokens\.json|vocab\.[^/]*|merges\.txt|[^/]*\.model"
    r"|chat_template\.[^/]*|tekken\.json"
)
_TASK_HEADS = {"classifier", "score", "qa_outputs"}  # PEFT saves these for its tasks without being asked


def with_adapter(base: Checkpoint, adapter: Adapter, name: str) -> Checkpoint:
    """The base as the adapter makes it.

    Args:
        base: the base model; other adapters may be on it already.
        adapter: the adapter, opened.
        name: what to call the two together.

    Raises:
        PlanError: if the adapter was made for another base.

    """
    view = _View(base, adapter)
    view.bring_whole()
    view.update_modules()
    relative, uri = adapter.weight_file
    hidden = f"adapters/{len(base.weight_files)}/{relative}" if relative else ""
    tokenizer = [file for file in adapter.files if view.brings_tokens and _TOKENIZER.fullmatch(file)]
    files = {**base.files, **{file: adapter.files[file] for file in tokenizer}}
    return replace(
        base,
        name=name,
        location=_location(base, adapter, hidden, tokenizer),
        tensors=view.tensors,
        files={**files, hidden: adapter.files[relative]} if relative else files,
        weight_files={**base.weight_files, uri: hidden},
        config_text=view.config_text(),
    )


class _View:
    """The base's tensors while an adapter is put on them."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base = base
        self.adapter = adapter
        self.tensors: dict[str, Source] = dict(base.tensors)
        self.brings_tokens = False
        self._own_paths = {path: path.replace(".base_layer", "") for path in adapter.modules}
        self._names = BaseNames(base.tensors, [*self._own_paths.values(), *adapter.whole])
        self._model_type = str(base.config.get("model_type", ""))
        self._edits: dict[str, Any] = {}
        tied = ties_embeddings(base.config) and not any(map(is_head, base.tensors)) and _has_language_head(base)
        self._tied_to = input_embedding(base.tensors) if tied else None
        self._head = (self._tied_to and head_name(self._tied_to, base.config)) or HEADS[0]

    def bring_whole(self) -> None:
        """Puts the tensors that the adapter brings whole in the place of the base's."""
        names = {path: self._name_of(path) for path in self.adapter.whole}
        brought = {name: self.adapter.whole[path] for path, name in names.items()}
        head = brought.get(self._head)
        for path, stored in self.adapter.whole.items():
            name = names[path]
            if name not in self.base.tensors:
                if (twin := brought.get(self._twin(name) or "")) is not None and self._same(stored, twin):
                    continue  # tied, and saved under both names
                if pieces := self._pieces(path, stored):
                    self.tensors |= pieces
                    continue
                self._check_new(path, name)
            known = self.tensors.get(name)
            vocabulary = _VOCABULARY.search(name) is not None
            self.brings_tokens |= vocabulary
            resized = known is not None and stored.shape != known.shape
            if known is not None and resized:
                if not vocabulary or stored.shape[1:] != known.shape[1:]:
                    found = f"a whole tensor of shape {list(stored.shape)}"
                    raise misfit(Target(name, known, None, ""), self.adapter, found)
                self._edits["vocab_size"] = stored.shape[0]
            if name == self._tied_to and (head is None or not self._same(head, stored)):
                self.untie(stored if resized else self.tensors[name])
            elif name == self._head and self._tied_to:
                self.untie(stored)
            self.tensors[name] = stored

    def update_modules(self) -> None:
        """Adds every module's update to its weight."""
        blocks: dict[str, list[AdapterModule]] = {}
        for path, module in self.adapter.modules.items():
            own = self._own_paths[path]
            weight = self._name_of(f"{own}.weight")
            only_tokens = set(module.parts) == ONLY_TOKENS
            if only_tokens and weight in (self._head, self._tied_to) and self._shares_tokens():
                if weight == self._head:
                    continue  # the same rows as those of the embedding
            elif self._tied_to and weight in (self._head, self._tied_to):
                self.untie(self.tensors.get(self._head, self.tensors[self._tied_to]))
            self.brings_tokens |= _VOCABULARY.search(weight) is not None
            if weight in self.tensors:
                self._update(weight, module)
            else:
                blocks.setdefault(own, []).append(module)
        for own, modules in blocks.items():
            block = self._names.find(own)
            if block is None:
                raise self._homeless(own, modules[0])
            self.tensors |= expert_updates(block, own, modules, self.tensors, self.adapter, self._model_type)

    def untie(self, head: Source) -> None:
        """Makes the tied head a tensor of its own."""
        self.tensors.setdefault(self._head, head)
        self._edits["tie_word_embeddings"] = False

    def config_text(self) -> str | None:
        """The base's config.json, with what the adapter changes of it."""
        if self.base.config_text is None or not self._edits:
            return self.base.config_text
        config = dict(self.base.config)
        for key, value in self._edits.items():
            inner = [
                path[0] for path, part in parts(config) if len(path) == 1 and key in part and roles(path[0]) <= {"text"}
            ]
            for part in inner:
                config[part] = {**config[part], key: value}
            if key in config or not inner:
                config[key] = value
        return json.dumps(config, indent=2)

    def _update(self, weight: str, module: AdapterModule) -> None:
        bias = weight.removesuffix("weight") + "bias"
        target = Target(weight, self.tensors[weight], self.tensors.get(bias), self._model_type)
        update = updated(target, module, self.adapter)
        self.tensors[weight] = update.weight
        if update.bias is not None:
            self.tensors[bias] = update.bias

    def _name_of(self, path: str) -> str:
        """The base's name of a tensor that the adapter calls `path`; a tied head's, which the base does not store."""
        found = self._names.find(path)
        return self._head if found is None and self._tied_to and is_head(path) else found or path

    def _twin(self, name: str) -> str | None:
        """What a tensor that the base does not store is tied to: a head, or what encoder and decoder share."""
        return self._tied_to if name == self._head else None if is_head(name) else tied_to(self.base.tensors, name)

    def _pieces(self, path: str, stored: Source) -> dict[str, Source] | None:
        block, _, leaf = path.rpartition(".")
        home = self._names.find(block)
        return expert_pieces(home, leaf, stored, self.base.tensors) if home else None

    def _same(self, first: Source, second: Source) -> bool:
        relative, uri = self.adapter.weight_file
        return same_values(first, second, self.adapter.location, {uri: relative})

    def _shares_tokens(self) -> bool:
        """Whether head and embedding are still one, and get the same rows replaced, the head perhaps unasked."""
        rows = {
            self._name_of(f"{self._own_paths[path]}.weight"): token_indices(module, self.adapter)
            for path, module in self.adapter.modules.items()
            if set(module.parts) == ONLY_TOKENS
        }
        embedding = rows.get(self._tied_to or "")
        return embedding is not None and self._head not in self.tensors and rows.get(self._head, embedding) == embedding

    def _check_new(self, path: str, name: str) -> None:
        """Only a tied head and the head of a task may be new; a module that the base has gets no new tensors."""
        saved = {*map(str, self.adapter.config.raw.get("modules_to_save") or ()), *_TASK_HEADS}
        asked = next((module for module in saved if f".{module}." in f".{path}"), None)
        if name == self._head and self._tied_to:
            return
        if asked is None or self._names.find((f".{path}".partition(f".{asked}.")[0] + f".{asked}")[1:]) is not None:
            raise self._homeless(path, None)

    def _homeless(self, path: str, module: AdapterModule | None) -> PlanError:
        adapter, lost = self.adapter, [p for p in self._own_paths.values() if self._names.find(p) is None]
        parts = module.parts if module else {"tensor": adapter.whole[path]}
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
        return PlanError(
            f"adapter {adapter.name} was made for another base: {self.base.name} has no {path}",
            expected=f"a place for each of its {len(adapter.modules)} modules",
            found=f"{max(len(lost), 1)} without one; this one with {shapes}",
            fix=named_base(adapter),
            tensor=path,
        )


def _has_language_head(base: Checkpoint) -> bool:
    kinds = base.config.get("architectures") or ()
    return any(str(kind).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for kind in kinds)


def _location(base: Checkpoint, adapter: Adapter, hidden: str, tokenizer: Sequence[str]) -> Location:
    """The base's files; with the adapter's tokenizer if it brings rows of the vocabulary, and its weights unlisted."""
    return Overlay(
        base.location,
        {name: (adapter.location, name) for name in tokenizer},
        {hidden: (adapter.location, adapter.weight_file[0])} if hidden else {},
        f"{base.identity}{WITH_ADAPTER}{adapter.identity}",
    )
