"""The merged model's README.md: what was merged, how, and how to use and repeat it.

Pure text from facts: paths are reduced to their last part, so that it tells nothing of the machine. How
merging works is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from cuvee.methods.spec import MethodSpec
from cuvee.tensors.reference import WITH_ADAPTER, ModelRef

_HUB = "hf://"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# By how the name of the config's first architecture ends; anything else loads through AutoModel.
_AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class CardInput:
    """One model that went into the merge.

    Attributes:
        reference: as the recipe names it.
        identity: what it was, beyond doubt: `hf://repository@commit`, or an absolute path.
        is_base: whether it was the base model.
    """

    reference: ModelRef
    identity: str
    is_base: bool = False


def model_card(
    name: str,
    *,
    method: MethodSpec,
    inputs: Sequence[CardInput],
    recipe_text: str,
    seed: int,
    dtype: str | None = None,
    architectures: Sequence[str] = (),
    with_tokenizer: bool = True,
    version: str,
) -> str:
    """The README.md of a merge: Markdown with YAML front matter as the Hub reads it.

    Args:
        name: the output directory; its last part is the title.
        method: the merge method.
        inputs: the models merged, the base among them.
        recipe_text: the recipe as the user wrote it.
        seed: the seed of whatever was drawn at random.
        dtype: the dtype of the weights; None if each kept its own.
        architectures: as the config lists them, to show how to load the model.
        with_tokenizer: whether a tokenizer lies beside the weights.
        version: the version of Cuvee that merged.
    """
    title = _one_line(_last_part(name))
    parts = [
        _front_matter(inputs),
        f"# {_escape(title)}",
        f"This model was merged from pre-trained models with Cuvee {version}.",
        "## Method",
        _method_text(method),
        "## Models",
        _table(inputs),
        "## Recipe",
        _fenced(recipe_text, "yaml"),
        "## Reproduce",
        _facts(seed, dtype, version),
        "## Use",
        _fenced(_usage(title, architectures, with_tokenizer=with_tokenizer), "python"),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(inputs: Sequence[CardInput]) -> str:
    names = [name for model in inputs for name, _, _ in _rows(model)]
    facts = {
        "base_model": list(dict.fromkeys(names)),
        "library_name": "transformers",
        "tags": ["merge", "mergekit", "cuvee"],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _method_text(method: MethodSpec) -> str:
    text = f"`{method.name}`: {method.summary}"
    if method.reference is None:
        return text
    reference = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", method.reference)
    return f"{text}\n\n{reference}"


def _table(inputs: Sequence[CardInput]) -> str:
    rows = [row for model in inputs for row in _rows(model)]
    lines = [f"| {_linked(name)} | {_escape(revision)} | {role} |" for name, revision, role in rows]
    return "\n".join(["| model | revision | role |", "|---|---|---|", *lines])


def _rows(model: CardInput) -> Iterator[tuple[str, str, str]]:
    """(public name, revision, role) of a model and of the adapters on it."""
    identity, *adapters = model.identity.split(WITH_ADAPTER)
    name, commit = _public(identity)
    yield name, commit or (identity.startswith(_HUB) and model.reference.revision) or "", _role(model)
    if adapters:
        yield from ((*_public(adapter), "adapter on the model above") for adapter in adapters)
        return
    for adapter in model.reference.adapters:
        name = adapter.path if _may_be_hub_id(adapter.path) else _last_part(adapter.path)
        yield name, adapter.revision or "", "adapter on the model above"


def _role(model: CardInput) -> str:
    return "base" if model.is_base else "merged"


def _public(identity: str) -> tuple[str, str]:
    """What an identity may be called in public, and its commit if it is one on the Hub."""
    if not identity.startswith(_HUB):
        return _last_part(identity), ""
    repository, _, commit = identity.removeprefix(_HUB).partition("@")
    return repository, commit


def _facts(seed: int, dtype: str | None, version: str) -> str:
    return "\n".join(
        [
            f"- Cuvee {version}: `cuvee merge mergekit_config.yml OUT` gives the same bytes again.",
            f"- Random seed: {seed}.",
            f"- Weights: {dtype or 'in the dtypes of the inputs'}; arithmetic in float32, rounded once.",
        ]
    )


def auto_class(architectures: Sequence[str]) -> str:
    """The class of transformers that loads models of these architectures, as a config lists them."""
    first = next(iter(architectures), "")
    return next((cls for ending, cls in _AUTO_CLASSES.items() if first.endswith(ending)), "AutoModel")


def _usage(title: str, architectures: Sequence[str], *, with_tokenizer: bool) -> str:
    auto = auto_class(architectures)
    path = f'"{title}"' if '"' not in title and "\\" not in title else repr(title)
    lines = [
        f"from transformers import {auto}{', AutoTokenizer' if with_tokenizer else ''}",
        "",
        f'model = {auto}.from_pretrained({path}, dtype="auto")',
    ]
    if with_tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({path})")
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _may_be_hub_id(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _linked(name: str) -> str:
    if _may_be_hub_id(name):
        return f"[{_escape(name)}](https://huggingface.co/{name})"
    return _escape(name)


def _escape(text: str) -> str:
    """`text` as Markdown shows it literally, in one line, in tables too."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
