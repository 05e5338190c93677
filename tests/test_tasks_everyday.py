"""Checks that problems in everyday words have right answers, whole sentences, and stay in `train`."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from train.tasks import Problem, everyday, everyday_phrases, word_problems
from train.tasks.word_steps import HIGHEST_RESULT, LOWEST_RESULT

EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
NUMBERS = {"n", "o", "r", "p", "q"}


def sample_everyday(count: int, seed: int) -> list[Problem]:
    """Samples `count` problems."""
    rng = random.Random(seed)
    return [everyday.sample_rewritable_problem(rng).problem for _ in range(count)]


def test_every_equation_holds_and_the_last_one_gives_the_answer() -> None:
    for problem in sample_everyday(2000, 1):
        equations = EQUATION.findall(problem.answer)
        assert equations, problem.answer
        for left, op, right, result in equations:
            assert eval(f"{left}{op}{right}") == int(result), problem.answer
            assert LOWEST_RESULT <= int(result) <= HIGHEST_RESULT
        assert word_problems.find_final_number(problem.answer) == int(equations[-1][3])
        assert word_problems.grade(problem, problem.answer)


def test_every_number_of_an_equation_is_in_the_prompt_or_an_earlier_result() -> None:
    for problem in sample_everyday(2000, 2):
        known = {*re.findall(r"\d+", problem.prompt), "2"}  # 2: half of it
        for left, _, right, result in EQUATION.findall(problem.answer):
            assert {left, right} <= known, (problem.prompt, problem.answer)
            known.add(result)


def test_phrases_have_known_fields_and_every_number_of_their_steps() -> None:
    words = {*everyday._sample_words(random.Random(0))}
    for steps, phrases in everyday.PARSED_STORIES:
        results = {step.result for step in steps}
        inputs = {name for step in steps for name in (step.left, step.right) if name.isalpha()} - results
        for phrase in phrases:
            fields = {*everyday.FIELD.findall(phrase)}
            assert fields - words == inputs, phrase
    longer = (
        *everyday_phrases.STARTS,
        *everyday_phrases.INCREASES,
        *everyday_phrases.DECREASES,
        *everyday_phrases.QUESTIONS,
    )
    for phrase in longer:
        assert {*everyday.FIELD.findall(phrase)} <= words | NUMBERS, phrase


def test_prompts_are_whole_sentences() -> None:
    for problem in sample_everyday(2000, 3):
        assert not re.search(r"[{}]|  | \.|\b[Aa] [aeio]", problem.prompt), problem.prompt
        assert not re.search(r"[.?!] [a-z]", problem.prompt), problem.prompt


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("box", "boxes"), ("candy", "candies"), ("toy", "toys"), ("bus", "buses"), ("sheep", "sheep"), ("pen", "pens")],
)
def test_plurals(noun: str, plural: str) -> None:
    assert everyday.pluralize(noun) == plural


def test_only_train_has_them() -> None:
    for split in word_problems.SPLITS:
        groups = {problem.group for problem in islice(word_problems.sample_problems(split, 300, 4), 300)}
        assert ("everyday" in groups) == (split == "train"), split
