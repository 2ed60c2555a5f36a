"""The skills that the demo family is asked to show: questions, each with one right answer, and scores.

Questions are spelled from raw random bits, which NumPy keeps the same in every version, and a question is
*held out* by its own text, so that no training set drawn here can hold a test question, whatever its seed.
This module does not know how a model answers; anything that completes text will do.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
_HELD_OUT_ONE_IN = 10

Draw = Callable[[int], int]
"""Gives a random whole number below its argument."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the one right answer, and the text by which it is held out of training."""

    prompt: str
    answer: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the tests; about one question in ten does."""
        return zlib.crc32(self.key.encode()) % _HELD_OUT_ONE_IN == 0


class Completes(Protocol):
    """Continues prompts with text."""

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """One continuation for each prompt, in order."""
        ...


def bits(seed: int) -> Draw:
    """A stream of whole numbers that is the same for the same seed, everywhere."""
    generator = np.random.PCG64(seed)
    return lambda below: int(generator.random_raw()) % below


def _reverse(draw: Draw) -> Question:
    word = _string(LETTERS, 4 + draw(4), draw)
    return Question(f"reverse: {word} = ", word[::-1], word)


def _sort(draw: Draw) -> Question:
    word = _string(DIGITS, 5 + draw(4), draw)
    return Question(f"sort: {word} = ", "".join(sorted(word)), word)


def _add(draw: Draw) -> Question:
    a, b = draw(100), draw(100)
    # Both orders of a sum are held out together: the swapped sum would give the answer away.
    return Question(f"add: {a}+{b} = ", str(a + b), f"{min(a, b)}+{max(a, b)}")


_SKILLS: dict[str, Callable[[Draw], Question]] = {"reverse": _reverse, "sort": _sort, "add": _add}
SKILLS = tuple(_SKILLS)
"""Names of the skills, each that of the expert that learned it."""


def questions(skill: str, seed: int, *, held_out: bool) -> Iterator[Question]:
    """An endless stream of one skill's questions, all of them held out of training or none."""
    draw, spell = bits(seed), _SKILLS[skill]
    while True:
        question = spell(draw)
        if question.held_out == held_out:
            yield question


def held_out_questions(skill: str, count: int = 200) -> tuple[Question, ...]:
    """The first `count` different test questions of a skill; always the same ones."""
    stream = questions(skill, seed=1, held_out=True)
    found: dict[str, Question] = {}
    while len(found) < count:
        question = next(stream)
        found.setdefault(question.prompt, question)
    return tuple(found.values())


def accuracy(model: Completes, skill: str, count: int = 200) -> float:
    """The share of a skill's test questions, from 0 to 1, that the model answers exactly."""
    asked = held_out_questions(skill, count)
    longest = max(len(question.answer) for question in asked)
    # One token more than the longest answer, so that an answer that does not end there is wrong.
    answers = model.complete([question.prompt for question in asked], longest + 1)
    return sum(q.answer == a for q, a in zip(asked, answers, strict=True)) / count


def _string(alphabet: str, length: int, draw: Draw) -> str:
    return "".join(alphabet[draw(len(alphabet))] for _ in range(length))
