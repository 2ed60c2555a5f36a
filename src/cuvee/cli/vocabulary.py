"""Draws what `cuvee vocab` found: two vocabularies side by side. What to merge them with is said in one line."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cuvee.views.vocabulary_report import VocabularyFacts, VocabularyReport

_SHOWN = 10


def report_json(report: VocabularyReport) -> str:
    """The whole report, every token that differs included."""
    return json.dumps(asdict(report), ensure_ascii=False, indent=2)


def report(found: VocabularyReport, console: Console) -> None:
    """The report as tables."""
    first, second, comparison = found.first, found.second, found.comparison
    table = Table("", escape(first.name), escape(second.name), box=None, header_style="bold", pad_edge=False)
    for label, *values in (
        ("tokenizer", first.kind, second.kind),
        ("tokens", first.tokens, second.tokens),
        ("of them added", first.added, second.added),
        ("highest id", first.highest, second.highest),
        ("embedding rows", first.rows, second.rows),
        ("vocab_size in config", first.config_size, second.config_size),
    ):
        table.add_row(label, *map(_shown, values))
    for role in dict.fromkeys([*first.special, *second.special]):
        table.add_row(role, _role(first, role), _role(second, role))
    table.add_row("chat template", _template(first), _template(second))
    console.print(table)
    console.print()
    console.print(f"shared tokens           {comparison.shared}")
    console.print(f"of them with another id {len(comparison.moved)}", highlight=False)
    for token, ours, theirs in comparison.moved[:_SHOWN]:
        console.print(f"  {escape(repr(token))}  {ours} / {theirs}", highlight=False)
    for name, tokens in ((first.name, comparison.only_first), (second.name, comparison.only_second)):
        console.print(f"only in {escape(name)}: {len(tokens)}", highlight=False)
        if tokens:
            console.print("  " + escape(", ".join(map(repr, tokens[:_SHOWN]))), highlight=False)
    if comparison.flags:
        console.print(f"added tokens looked for in other ways: {len(comparison.flags)}", highlight=False)
        console.print("  " + escape(", ".join(map(repr, comparison.flags[:_SHOWN]))), highlight=False)
    if first.template != second.template and first.template and second.template:
        console.print("the chat templates differ", highlight=False)
    console.print(_advice(found), highlight=False)


def _advice(found: VocabularyReport) -> str:
    comparison = found.comparison
    if comparison.equal and found.first.rows == found.second.rows:
        return "These models merge without a tokenizer setting."
    if comparison.equal:
        return "The tokens are the same, the paddings are not: merge with `tokenizer: {source: base}`."
    if not found.has_union:
        return "The same text of a token means different things, so no union: merge with `tokenizer: {source: base}`."
    return "Merge with `tokenizer: {source: base}` to keep the base's tokens, or `{source: union}` to have all."


def _shown(value: object) -> str:
    return "-" if value is None else escape(str(value))


def _role(facts: VocabularyFacts, role: str) -> str:
    if role not in facts.special:
        return "-"
    token, number = facts.special[role]
    return escape(f"{token!r} {'(no id)' if number is None else number}")


def _template(facts: VocabularyFacts) -> str:
    if facts.template is None:
        return "-"
    first, *rest = facts.template.strip().splitlines() or [""]
    short = first if len(first) <= 40 else first[:40]
    return escape(short + ("..." if rest or short != first else "") + f" ({len(facts.template)} characters)")
