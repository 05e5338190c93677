"""The grammar of the task code: families on one side, parts and words that training has, tests that tell them apart."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from train import tasks
from train.tasks import function_grammar, functions
from train.tasks.function_composition import FamilyParts, list_results
from train.tasks.function_grammar import SHAPES, SOURCES, find_family_split, is_family, list_slots
from train.tasks.problem import find_sample_split

[CODE] = tasks.choose_tasks("code")
SPLITS = function_grammar.SPLITS
SIDES = ("train", "valid", "test")


def all_families() -> Iterator[FamilyParts]:
    """Yields every family of the grammar."""
    for source, shape in itertools.product(SOURCES, SHAPES):
        pools = list_slots(FamilyParts(source))
        for names in itertools.product(*(pools[slot] for slot in shape)):
            family = FamilyParts(source, **dict(zip(shape, names, strict=True)))
            if function_grammar._has_sound_selection(family):  # not once for each result
                yield from filter(is_family, (family._replace(result=result) for result in list_results(family)))


@pytest.fixture(scope="module")
def families() -> dict[str, set[FamilyParts]]:
    """Returns the families of each side."""
    found: dict[str, set[FamilyParts]] = {side: set() for side in SIDES}
    for family in all_families():
        found[find_family_split(family)].add(family)
    return found


def words_of(text: str) -> set[str]:
    return {*re.findall(r"[a-z]+", text.lower())}


def run(program: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(program, space)
    return space


def passes(program: str, assertions: tuple[str, ...]) -> bool:
    """Returns whether a program passes assertions; without the sandbox, as it is one of the grammar's."""
    space = run(program)
    try:
        for assertion in assertions:
            exec(assertion, space)
    except Exception:
        return False
    return True


def test_there_are_thousands_of_families_and_many_held_out(families: dict[str, set[FamilyParts]]) -> None:
    assert len(families["train"]) > 20_000 and min(len(families[side]) for side in ("valid", "test")) > 3_000


def test_each_part_and_each_two_parts_of_a_held_out_family_are_in_training(
    families: dict[str, set[FamilyParts]],
) -> None:
    def pairs(some: set[FamilyParts]) -> set[tuple[tuple[int, str], ...]]:
        return {pair for each in some for pair in itertools.combinations([(i, p) for i, p in enumerate(each) if p], 2)}

    trained = pairs(families["train"])
    assert len(trained) > 1000 and pairs(families["valid"]) <= trained and pairs(families["test"]) <= trained


def test_a_family_of_one_or_two_parts_is_never_held_out(families: dict[str, set[FamilyParts]]) -> None:
    for family in families["valid"] | families["test"]:
        assert sum(part != "" for part in family[1:-1]) + (family.result != "list") >= 3


def test_sampled_families_are_of_their_split_s_side(families: dict[str, set[FamilyParts]]) -> None:
    sides = {"train": "train", "valid_seen": "train", "test_seen": "train"}
    for split in ("train", *SPLITS):
        rng = random.Random(split)
        sampled = {function_grammar.sample_family(split, rng)[0] for _ in range(300)}
        assert len(sampled) > 200 and sampled <= families[sides.get(split, split.removesuffix("_families"))]


@pytest.mark.parametrize(
    "family",
    [
        FamilyParts("numbers", condition="even", change="squares", result="sum"),
        FamilyParts("words", condition="ending", result="count"),
        FamilyParts("numbers", condition="no_multiples", result="count"),
        FamilyParts("numbers", condition="upto", result="product"),
        FamilyParts("numbers", condition="from", change="times"),
        FamilyParts("numbers", place="first", result="sum"),
        FamilyParts("numbers", result_condition="multiples", result="all"),
    ],
)
def test_what_test_templates_holds_out_is_in_no_split_of_the_grammar(family: FamilyParts) -> None:
    assert not is_family(family)


def test_half_of_train_is_of_the_grammar_and_the_same_arguments_give_the_same_problems() -> None:
    problems = [*CODE.problems("train", 600, 3)]
    assert 0.42 < sum(" " in problem.group for problem in problems) / 600 < 0.58
    for split in SPLITS:
        some = [*CODE.problems(split, 20, 3)]
        assert some == [*CODE.problems(split, 25, 3)][:20] and some != [*CODE.problems(split, 20, 4)]


def test_prompts_are_of_their_split_fit_and_have_the_words_of_training() -> None:
    trained = [*CODE.problems("train", 5000, 0)]
    known = set[str]().union(*(words_of(problem.prompt) for problem in trained))
    for split in SPLITS:
        problems = [*CODE.problems(split, 120, 0)]
        prompts = {problem.prompt for problem in problems}
        assert len(prompts) == 120 and not prompts & {problem.prompt for problem in trained}
        if split.endswith("_seen"):
            assert {find_sample_split(prompt) for prompt in prompts} == {split.removesuffix("_seen")}
        for problem in problems:
            instruction = problem.prompt.partition("\n")[0]  # the example's results have parts of words
            assert not words_of(instruction) - known, problem.prompt
            assert len(functions.TOKEN.findall(problem.prompt)) <= functions.MAX_PROMPT_TOKENS
            assert len(functions.TOKEN.findall(problem.answer)) <= 72, problem.answer


def test_every_right_answer_passes_its_tests() -> None:
    for split in SPLITS:
        problems = [*CODE.problems(split, 100, 1)]
        assert all(5 <= len(problem.tests) <= 8 for problem in problems)
        assert all(passes(problem.answer, problem.tests) for problem in problems)
        assert all(CODE.grade_many(problems[:25], [problem.answer for problem in problems[:25]]))


def test_answers_of_neighboring_families_are_refused() -> None:
    passed = refused = 0
    for turn, split in enumerate(("valid_families", "test_seen") * 40):
        rng = random.Random(f"{split}-{turn}")
        family, composed = function_grammar.sample_family(split, rng)
        sampled, prompt = functions._sample_prompt(split, composed, rng)
        tests = functions._choose_discriminating_tests(family, sampled, prompt, rng) if prompt else ()
        constants = {name: sampled.values[name] for name in composed.pools}
        others = function_grammar.list_neighbors(family, constants, random.Random(turn))
        for body, values in others if tests else ():
            other = functions._write_answer(replace(composed, body=body), sampled.name, {**sampled.values, **values})
            wrong = passes(other, tests)
            passed, refused = passed + wrong, refused + (not wrong)
    assert refused > 2000 and passed <= 0.03 * (passed + refused), (passed, refused)


def test_functions_do_what_an_engineer_reads_in_the_instruction() -> None:
    written = {
        FamilyParts("numbers", "rest", "even", change="squares", result="sum"): (
            "returns the sum of the squares of the even numbers among the items after the first {p} in {a}",
            "return sum(v ** 2 for v in {a}[{p}:] if v % 2 == 0)",
        ),
        FamilyParts("numbers", condition="odd", second_condition="above", change="plus", result="largest"): (
            "adds {t} to each of the odd numbers greater than {m} in {a} and returns the largest of the results,"
            " or {d} if there are none",
            "return max([v + {t} for v in {a} if v % 2 == 1 and v > {m}], default={d})",
        ),
        FamilyParts("numbers", condition="from", second_condition="upto", result="count"): (
            "counts the numbers of at least {n} and at most {m} in {a}",
            "return sum(1 for v in {a} if v >= {n} and v <= {m})",
        ),
        FamilyParts("numbers", change="taken", result_condition="even", result="find_last"): (
            "subtracts each of the numbers in {a} from {t} and returns the last of the even results,"
            " or {d} if there are none",
            "result = {d}\nfor v in {a}:\n    if ({t} - v) % 2 == 0:\n        result = {t} - v\nreturn result",
        ),
        FamilyParts("numbers", "last", change="cubes", result_condition="below", result="any"): (
            "checks whether any of the cubes of the last {p} items of {a} is less than {c}",
            "return any(v ** 3 < {c} for v in {a}[-{p}:])",
        ),
        FamilyParts("text", "first", "with", change="upper", result="join"): (
            "converts each of the words containing '{n}' among the first {p} space-separated words of {a} to upper"
            " case and joins the results into a string with {s[0]} between them",
            "return '{s[1]}'.join(w.upper() for w in {a}.split()[:{p}] if '{n}' in w)",
        ),
        FamilyParts("words", "front", result="distinct"): (
            "returns the distinct values of the items before the last {p} in {a} in alphabetical order",
            "return sorted(set({a}[:-{p}]))",
        ),
    }  # fmt: skip
    for family, (text, body) in written.items():
        made = function_grammar.compose(family, {})
        assert is_family(family) and (made.text, made.body) == (text, body)
