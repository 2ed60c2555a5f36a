"""Chat templates: the built-in ones, where models keep theirs, and which of them the output gets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cuvee.errors import VocabularyError
from cuvee.tensors.location import Location

TEMPLATE_FILE = "chat_template.jinja"
_JSON_FILE = "chat_template.json"
_MAX_BYTES = 4 << 20

_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% set held = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set held.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + held.system + message['content'] + ' [/INST]' }}"
    "{% set held.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}"
)
_EXAONE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
BUILT_IN: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "exaone": _EXAONE,
}
"""Written for Cuvee from the formats' descriptions, by the names that recipes use."""
MARKERS: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "exaone": ("[|endofturn|]",),
}
"""Tokens that a built-in template relies on."""


def template_of(location: Location, files: Mapping[str, int], settings: Mapping[str, Any]) -> str | None:
    """The chat template of a checkpoint, wherever it keeps it: the default one, if it has several."""
    if files.get(TEMPLATE_FILE, _MAX_BYTES + 1) <= _MAX_BYTES:
        return location.read(TEMPLATE_FILE, 0, files[TEMPLATE_FILE]).decode(errors="replace")
    written = settings.get("chat_template")
    if written is None and files.get(_JSON_FILE, _MAX_BYTES + 1) <= _MAX_BYTES:
        try:
            written = json.loads(location.read(_JSON_FILE, 0, files[_JSON_FILE])).get("chat_template")
        except (ValueError, AttributeError, RecursionError):
            return None
    if isinstance(written, list):
        named = {str(entry.get("name")): entry.get("template") for entry in written if isinstance(entry, Mapping)}
        written = named.get("default", next(iter(named.values()), None))
    return written if isinstance(written, str) else None


def chosen_template(wanted: str, inputs: Iterable[str | None], where: str) -> str | None:
    """The template that a recipe's `chat_template` means.

    Args:
        wanted: `auto` (the commonest of the inputs'; of equally common ones the first), a built-in one's name, or
            Jinja text.
        inputs: the models' templates; None for one that has none.
        where: the place in the recipe, for messages.

    Raises:
        VocabularyError: if it is neither a known name nor valid Jinja.

    """
    if wanted == "auto":
        counts = Counter(template for template in inputs if template)
        return counts.most_common(1)[0][0] if counts else None
    if wanted in BUILT_IN:
        return BUILT_IN[wanted]
    if "{{" not in wanted and "{%" not in wanted:
        raise VocabularyError(
            f"there is no chat template called {wanted[:80]!r}",
            expected="auto, " + ", ".join(BUILT_IN) + ", or a Jinja template",
            where=where,
            fix="write the template itself, with {{ and {%",
        )
    _check_jinja(wanted, where)
    return wanted


def _check_jinja(text: str, where: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %}`, with which templates mark what an assistant said."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    try:
        Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], autoescape=False).parse(text)  # noqa: S701
    except TemplateSyntaxError as error:
        raise VocabularyError(
            f"the chat template is not valid Jinja: {error.message}",
            found=f"line {error.lineno} of the template",
            where=where,
        ) from error
