"""Gives every model the output's vocabulary: embeddings, heads and their biases get one row for each of its tokens.

Rows are gathered from the models' own tensors as they are read. After this view all models share one vocabulary, so
planning and the engine need not know that there were several. How files are written is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from cuvee.errors import VocabularyError
from cuvee.options import MergeOptions
from cuvee.recipe.schema import Recipe
from cuvee.recipe.vocabulary import VocabularyRecipe, vocabulary_recipe
from cuvee.tensors.checkpoint import Checkpoint
from cuvee.tensors.places import open_location
from cuvee.tensors.reference import ModelRef
from cuvee.views.vocabulary_rows import VocabularyModel, with_rows
from cuvee.views.vocabulary_rules import token_rules
from cuvee.views.vocabulary_sizes import axes_of, content_warnings, listed_in, truncated
from cuvee.vocab.cautions import cautions
from cuvee.vocab.chat import MARKERS, chosen_template, template_of
from cuvee.vocab.json_text import without_collections
from cuvee.vocab.output import OutputTokenizer, OutputVocabulary, unchanged, union, with_tokens
from cuvee.vocab.places import known_places
from cuvee.vocab.rows import Holder, row_maps
from cuvee.vocab.spelling import ids_as_spelt_by
from cuvee.vocab.tokenizer import Tokenizer, read_tokenizer, settings_of

Checkpoints = Mapping[ModelRef, Checkpoint]


@dataclass(frozen=True)
class OneVocabulary:
    """Checkpoints that share a vocabulary (as far as the recipe wants that), and what becomes of the tokenizer."""

    checkpoints: Checkpoints
    output: OutputVocabulary
    warnings: tuple[str, ...] = ()


def with_one_vocabulary(recipe: Recipe, checkpoints: Checkpoints, options: MergeOptions) -> OneVocabulary:
    """The checkpoints as the recipe's tokenizer settings want them, and the chat template it asks for.

    Without settings nothing changes (but for `--unsafe-truncate-embeddings`); vocabularies of one size whose tokens
    differ are then told in a warning.

    Raises:
        VocabularyError: if the vocabularies cannot be brought together as the recipe says.

    """
    wanted = vocabulary_recipe(recipe)
    if wanted is not None:
        with without_collections():
            found = _mapped(recipe, wanted, checkpoints, options)
    elif options.unsafe_truncate_embeddings:
        found = OneVocabulary(*truncated(checkpoints, first=_first(recipe)))
    else:
        found = OneVocabulary(checkpoints, OutputVocabulary(), content_warnings(checkpoints))
    template = _template(recipe, checkpoints.values())
    if template is None:
        return found
    said = _lacking(recipe.chat_template, found.output.tokenizer, checkpoints[_first(recipe)])
    return replace(found, output=replace(found.output, template=template), warnings=(*found.warnings, *said))


def _mapped(recipe: Recipe, wanted: VocabularyRecipe, checkpoints: Checkpoints, options: MergeOptions) -> OneVocabulary:
    """The checkpoints with rows in the order of the tokenizer that the settings ask for."""
    models = _models(checkpoints, recipe, wanted)
    start = _start(recipe, wanted, models, options)
    output = _output(start, wanted, models)
    if output.changed:
        _ = output.document  # a tokenizer that cannot be made is refused before anything is written
    keeper = next((i for i, model in enumerate(models) if model.tokenizer is start.start), None)
    holders = [Holder(model.checkpoint.name, model.tokenizer.ids, model.rows) for model in models]
    spelt = [_spelt(holder, output, model.tokenizer) for holder, model in zip(holders, models, strict=True)]
    maps = row_maps(
        output.ids,
        spelt,
        base=next((i for i, model in enumerate(models) if model.ref == recipe.base_model), None),
        keeper=keeper,
        kept=start.start.size if wanted.source == "union" or keeper is None else holders[keeper].rows,
        rules=token_rules(recipe, wanted, {model.ref: i for i, model in enumerate(models)}, holders),
        multiple=wanted.multiple,
    )
    views = dict(checkpoints)
    for number, model in enumerate(models):
        views[model.ref] = with_rows(number, models, maps)
    first = next((model for model in models if model.ref == _first(recipe)), None)
    base_ids = first.tokenizer.ids if first and (first.tokenizer is not output.start or output.dropped) else None
    return OneVocabulary(views, OutputVocabulary(output.finished(), maps.rows, base_ids=base_ids), _warnings(output))


def _spelt(holder: Holder, output: OutputTokenizer, tokenizer: Tokenizer) -> Holder:
    """A model with its tokens in the output's spelling, and what is known of their places there."""
    ids = ids_as_spelt_by(output.start, tokenizer)
    return replace(holder, ids=ids, places=known_places(output.places, ids))


def _template(recipe: Recipe, checkpoints: Iterable[Checkpoint]) -> str | None:
    """The chat template that the recipe asks for; None if it asks for none, or no input has one."""
    if recipe.chat_template is None:
        return None
    inputs = [template_of(c.location, c.files, settings_of(c.location, c.files, c.name)) for c in checkpoints]
    return chosen_template(recipe.chat_template, inputs, recipe.marks.where(("chat_template",)))


def _lacking(template: str | None, tokenizer: OutputTokenizer | None, first: Checkpoint) -> tuple[str, ...]:
    """A line about tokens that a built-in template uses and the output's tokenizer, or else the first's, lacks."""
    needed = MARKERS.get(template or "", ())
    if not needed:
        return ()
    listed = tokenizer or listed_in(first)
    lacking = [token for token in needed if listed is not None and token not in listed.ids]
    if not lacking:
        return ()
    fix = "add them: `tokenizer: {tokens: {TOKEN: {source: ...}}}`"
    return (f"chat template {template} uses {', '.join(lacking)}, which the output's tokenizer lacks; {fix}",)


def _first(recipe: Recipe) -> ModelRef:
    """The model whose files go along."""
    return recipe.base_model or recipe.modules[0].slices[0].sources[0].model


def _models(checkpoints: Checkpoints, recipe: Recipe, wanted: VocabularyRecipe) -> list[VocabularyModel]:
    models: list[VocabularyModel] = []
    for ref, checkpoint in checkpoints.items():
        axes = axes_of(checkpoint)
        if not axes:
            continue
        tokenizer = read_tokenizer(
            checkpoint.location, checkpoint.name, checkpoint.files, [model.tokenizer for model in models]
        )
        if tokenizer is None:
            raise VocabularyError(
                f"{checkpoint.name} has no tokenizer, so its tokens cannot be matched with the others'",
                expected="tokenizer.json, or files that transformers can convert",
                where=recipe.marks.where((wanted.field,)),
                fix="put its tokenizer beside its weights, or leave the tokenizer settings out",
                checkpoint=checkpoint.name,
            )
        models.append(VocabularyModel(ref, checkpoint, axes, tokenizer))
    if not models:
        raise VocabularyError(
            "none of the models has a vocabulary: no input embedding was found",
            where=recipe.marks.where((wanted.field,)),
            fix="leave the tokenizer settings out",
        )
    return models


def _start(
    recipe: Recipe, wanted: VocabularyRecipe, models: Sequence[VocabularyModel], options: MergeOptions
) -> OutputTokenizer:
    """The tokenizer that the output's starts from."""
    ref = _first(recipe) if isinstance(wanted.source, str) else wanted.source
    model = next((model for model in models if model.ref == ref), None)
    if model is not None:
        return unchanged(model.tokenizer, model.rows)
    _check_spelling(recipe, wanted, str(ref))
    cache = Path(options.transformers_cache).expanduser() if options.transformers_cache else None
    tokenizer = read_tokenizer(open_location(ref, cache), str(ref))
    if tokenizer is None:
        raise VocabularyError(
            f"{ref} has no tokenizer that the output could take",
            where=recipe.marks.where((wanted.field,)),
            fix="name a model with a tokenizer, or `union`",
        )
    return unchanged(tokenizer, None)


def _check_spelling(recipe: Recipe, wanted: VocabularyRecipe, named: str) -> None:
    """Refuses `unoin` before it is looked for on the Hub, where one word may be a model's name, but rarely this one."""
    near = get_close_matches(named.lower(), ("union", "base"), n=1, cutoff=0.8)
    if near and not Path(named).expanduser().exists():
        raise VocabularyError(
            f"no model is called {named!r}",
            expected="union, base, or a model's path or Hub id",
            where=recipe.marks.where((wanted.field, "source") if wanted.field == "tokenizer" else (wanted.field,)),
            fix=f"did you mean {near[0]}?",
        )


def _output(start: OutputTokenizer, wanted: VocabularyRecipe, models: Sequence[VocabularyModel]) -> OutputTokenizer:
    output = start
    if wanted.source == "union":
        output = union(start, [(m.tokenizer, m.rows) for m in models if m.tokenizer is not start.start])
    flags = {token: flags for model in reversed(models) for token, flags in model.tokenizer.added.items()}
    return with_tokens(output, wanted.tokens, flags)


def _warnings(output: OutputTokenizer) -> tuple[str, ...]:
    said = cautions(output)
    if not output.dropped:
        return said
    shown = ", ".join(map(repr, sorted(output.dropped, key=output.start.ids.__getitem__)[:5]))
    return (
        *said,
        f"{len(output.dropped)} tokens of {output.start.name} have ids beyond its embedding and are left out: {shown}",
    )
