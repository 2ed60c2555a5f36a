"""Questions are right, always the same, and never in a training stream; scores count exact answers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import pytest

from cuvee.demo import skills
from cuvee.demo.skills import SKILLS, Question


class Answers:
    """A stand-in model: `answer` is given each prompt."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        return [self.answer(prompt)[:max_new_tokens] for prompt in prompts]


def solve(prompt: str) -> str:
    """An independent solver, straight from the prompt's words."""
    skill, given = prompt.removesuffix(" = ").split(": ")
    if skill == "reverse":
        return "".join(reversed(given))
    if skill == "sort":
        return "".join(digit * given.count(digit) for digit in "0123456789")
    a, _, b = given.partition("+")
    return str(int(a) + int(b))


@pytest.mark.parametrize("skill", SKILLS)
def test_every_test_question_is_answered_by_an_independent_solver(skill: str) -> None:
    asked = skills.held_out_questions(skill)
    assert len(asked) == len({question.prompt for question in asked}) == 200
    assert all(question.prompt.startswith(f"{skill}: ") for question in asked)
    assert [question.answer for question in asked] == [solve(question.prompt) for question in asked]


FIRST = {
    "reverse": ["reverse: npesye = ", "reverse: qydjny = ", "reverse: pljsnpr = "],
    "sort": ["sort: 04312 = ", "sort: 169920 = ", "sort: 5422006 = "],
    "add": ["add: 28+30 = ", "add: 96+30 = ", "add: 23+49 = "],
}


@pytest.mark.parametrize("skill", SKILLS)
def test_the_questions_never_change(skill: str) -> None:
    assert [question.prompt for question in skills.held_out_questions(skill, 3)] == FIRST[skill]


@pytest.mark.parametrize("skill", SKILLS)
def test_training_never_meets_a_test_question(skill: str) -> None:
    asked = {question.key for question in skills.held_out_questions(skill, 400)}
    assert all(question.held_out for question in skills.held_out_questions(skill, 400))
    taught = {question.key for question in islice(skills.questions(skill, 1, held_out=False), 4000)}
    assert len(taught) > 1000
    assert not asked & taught


def test_a_sum_is_held_out_in_both_orders() -> None:
    asked = {question.prompt for question in skills.held_out_questions("add", 400)}
    taught = {question.prompt for question in islice(skills.questions("add", 5, held_out=False), 20_000)}
    swapped = {"add: {1}+{0} = ".format(*prompt[5:-3].split("+")) for prompt in asked}
    assert not swapped & taught


def test_about_one_question_in_ten_is_held_out() -> None:
    draw = skills.bits(3)
    keys = [str(draw(10**9)) for _ in range(5000)]
    assert sum(Question("", "", key).held_out for key in keys) == pytest.approx(500, abs=100)


@pytest.mark.parametrize("skill", SKILLS)
def test_accuracy_is_the_share_of_exact_answers(skill: str) -> None:
    asked = skills.held_out_questions(skill)
    known = {question.prompt for question in asked[:50]}
    assert skills.accuracy(Answers(solve), skill) == 1.0
    assert skills.accuracy(Answers(lambda prompt: solve(prompt) if prompt in known else "?"), skill) == 0.25
    assert skills.accuracy(Answers(lambda prompt: solve(prompt) + "0"), skill) == 0.0
    assert skills.accuracy(Answers(lambda prompt: solve(prompt)[:-1]), skill) == 0.0
