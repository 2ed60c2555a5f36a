"""The Python door to looking: what checkpoints, vocabularies and adapters hold, and whether a merge is whole."""

from __future__ import annotations

from pathlib import Path

from cuvee.adapters.facts import AdapterFacts, facts_of
from cuvee.checking.check import check_checkpoint
from cuvee.checking.findings import CheckReport
from cuvee.layout.tree import Tree, tree_of
from cuvee.options import MergeOptions
from cuvee.tensors.reference import ModelRef
from cuvee.views.opener import Opener, conversions
from cuvee.views.opening import open_stored
from cuvee.views.vocabulary_report import VocabularyReport
from cuvee.views.vocabulary_report import compare_vocabularies as side_by_side

_DEFAULTS = MergeOptions()


def describe(checkpoint: str | Path, options: MergeOptions = _DEFAULTS) -> Tree:
    """What a checkpoint holds: its stacks, layers, shapes, ties and vocabulary, from headers and config alone.

    Args:
        checkpoint: a path or Hub id, with `@revision` if need be.
        options: of which only where downloaded models lie counts.

    Raises:
        CuveeError: if it cannot be opened.

    """
    return tree_of(open_stored(ModelRef.parse(str(checkpoint)), options))


def check(checkpoint: str | Path, *, quick: bool = False, prompt: str | None = None) -> CheckReport:
    """What is right and wrong with a checkpoint on this machine: complete, consistent, finite, loadable.

    Args:
        checkpoint: its directory.
        quick: read headers and small files only.
        prompt: if given, the model is asked to go on with it.

    Raises:
        SourceError: if there is no such directory.

    """
    return check_checkpoint(Path(checkpoint), quick=quick, prompt=prompt, converted=conversions())


def compare_vocabularies(first: str, second: str, options: MergeOptions = _DEFAULTS) -> VocabularyReport:
    """The vocabularies of two models (paths or Hub ids) side by side, and how they differ.

    Raises:
        CuveeError: if one cannot be reached, or has no tokenizer.

    """
    return side_by_side(first, second, options)


def adapter_facts(reference: str, options: MergeOptions = _DEFAULTS) -> AdapterFacts:
    """What the adapter at a path or Hub id is, from its config and headers.

    Raises:
        CuveeError: if there is none, or it is corrupt or of a kind that is not supported.

    """
    return facts_of(Opener(None, options).adapter(ModelRef.parse(reference)))
