"""Prompts as people type them: the right answer stays, held-out names are held out, `valid` and `test` are as ever."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path

import pytest

from train import evaluate, tasks
from train.evaluation.evaluation_run import summarize_groups
from train.tasks import argument_names, first_names, functions, surface, word_orders, word_problems
from train.tasks.function_families_simple import SIMPLE
from train.tasks.problem import find_sample_split
from train.tasks.word_problems import find_final_number
from train.tasks.word_templates import NAMES

MATH, CODE = tasks.choose_tasks("math,code")
CHANGES = {"math": word_problems.CHANGES, "code": functions.CHANGES}
VISITOR = "Tom has 3 bags with 4 apples each. How many apples does he have?"
# Of 300 problems with seed 0: what results under samples/results were measured on, and models are compared on.
DIGESTS = {
    ("math", "valid"): "581d90af1b8f45ff",
    ("math", "test"): "12e944e071ed1598",
    ("math", "test_templates"): "0c5d3670275ff47d",
    ("math", "valid_surface"): "3682165f056b688f",
    ("math", "test_surface"): "ad4ff78d4c0207f1",
    ("math", "valid_simple"): "840f538fcc4e9810",
    ("math", "test_simple"): "80e48d9b60fdf0ed",
    ("math", "valid_families"): "b6002108b0d992a9",
    ("math", "test_families"): "ad56057da2861a06",
    ("math", "valid_seen"): "706f09641c256acb",
    ("math", "test_seen"): "d16a94e2d73aa36e",
    ("code", "valid"): "253bfc2b45cbb9d5",
    ("code", "test"): "d7a0d975d0a5b188",
    ("code", "test_templates"): "db830356bae41b1e",
    ("code", "valid_surface"): "b416fff6c85a064b",
    ("code", "test_surface"): "52980e757adcaec5",
}
NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
EACH = pytest.mark.parametrize("task", [MATH, CODE], ids=lambda task: task.name)


def words_of(text: str) -> set[str]:
    return {*re.findall(r"\w+", text)}


@pytest.mark.parametrize(("name", "split"), DIGESTS, ids="-".join)
def test_what_was_measured_on_stays_byte_for_byte(name: str, split: str) -> None:
    digest = hashlib.sha256()
    for problem in tasks.choose_tasks(name)[0].problems(split, 300, 0):
        digest.update(repr((problem.prompt, problem.answer, problem.group, problem.tests)).encode())
    assert digest.hexdigest()[:16] == DIGESTS[name, split]


@EACH
def test_a_surface_split_has_the_same_problems_with_one_change_each_and_the_same_right_answer(task: tasks.Task) -> None:
    clean, rewritten = [*task.problems("valid", 100, 3)], [*task.problems("valid_surface", 100, 3)]
    changes = Counter(problem.group for problem in rewritten)
    assert changes.keys() == {*CHANGES[task.name]} and min(changes.values()) >= 3
    assert rewritten[:60] == [*task.problems("valid_surface", 60, 3)]
    assert [*task.problems("test_surface", 20, 3)] != rewritten[:20]
    for before, after in zip(clean, rewritten, strict=True):
        assert before.prompt != after.prompt
        assert after.answer == before.answer or after.group == "name"
        assert {*before.tests} <= {*after.tests}
        assert find_final_number(before.answer) == find_final_number(after.answer)
    assert all(task.grade_many(rewritten, [problem.answer for problem in rewritten]))
    wrong = [re.sub(r"#### |return .*", "#### 1", problem.answer) for problem in rewritten]
    assert not any(task.grade_many(rewritten, wrong))


@EACH
def test_no_prompt_of_valid_and_test_written_in_any_way_comes_out_of_train(task: tasks.Task) -> None:
    trained = {problem.prompt for problem in task.problems("train", 1500, 5)}
    held_out = [
        problem.prompt
        for split in ("valid", "test", "valid_surface", "test_surface")
        for problem in task.problems(split, 150, 5)
    ]
    assert not trained & {*held_out} and len({*held_out}) == 600
    # a prompt of train is clean and hashed to train, or rewritten and hashed to train as it stands
    assert {find_sample_split(prompt) for prompt in trained} == {"train"}


@EACH
def test_about_three_in_ten_training_prompts_are_rewritten_and_each_right_answer_still_passes(task: tasks.Task) -> None:
    problems = [*task.problems("train", 1200, 7)]
    assert problems == [*task.problems("train", 1200, 7)] and problems != [*task.problems("train", 1200, 8)]
    drafts = (
        [*word_problems.sample_rewritable_problems("train", 1200, 7)]
        if task is MATH
        else [*functions.sample_rewritable_problems("train", 1200, 7)]
    )
    assert [*surface.rewrite_some(drafts, CHANGES[task.name], random.Random("surface-train-7"))] == problems
    clean = [draft.problem for draft in drafts]
    changed = [after for before, after in zip(clean, problems, strict=True) if before.prompt != after.prompt]
    assert 0.25 < len(changed) / 1200 < 0.34
    assert all(task.grade_many(changed[:80], [problem.answer for problem in changed[:80]]))
    assert {problem.group for problem in changed} <= {problem.group for problem in clean}  # no name of a change


@EACH
def test_held_out_names_are_in_the_surface_splits_alone_and_in_their_answers(task: tasks.Task) -> None:
    if task is MATH:
        held_out = {name for pool in first_names.HELD_OUT.values() for name in pool}
        training = {name for pool in first_names.TRAINING.values() for name in pool}
        own = {name for name, _ in NAMES}
        assert not (held_out & training or held_out & own or training & own)
        assert len(training) > 400 and len(held_out) > 80
    else:
        held_out = {name for pool in argument_names.HELD_OUT_ARGUMENTS.values() for name in pool}
        training = {name for pool in argument_names.OTHER_ARGUMENTS.values() for name in pool}
        own = {name for pools in argument_names.ARGUMENTS.values() for pool in pools for name in pool}
        assert not (held_out & training or held_out & own or training & own)
    seen = set[str]()
    for problem in task.problems("train", 2500, 9):
        seen |= words_of(problem.answer)
    assert not seen & held_out and len(seen & training) > 0.25 * len(training)
    renamed = [problem for problem in task.problems("test_surface", 240, 9) if problem.group == "name"]
    assert len(renamed) >= 15
    for problem in renamed:
        names = words_of(problem.prompt) & held_out
        answer = words_of(problem.answer if task is MATH else re.findall(r"\(.*\):\n", problem.answer)[0])
        assert names and not answer & (training | own)
        assert names & answer or task is MATH  # some answers name nobody


def test_half_of_the_training_functions_have_arguments_that_nobody_can_guess() -> None:
    problems = [*CODE.problems("train", 1500, 4)]
    heads = [re.findall(r"\((.*)\):\n", problem.answer)[0].split(", ") for problem in problems]
    known = {name for pools in argument_names.ARGUMENTS.values() for pool in pools for name in pool}
    known |= {name for pool in argument_names.OTHER_ARGUMENTS.values() for name in pool}
    invented = [names for names in heads if not {*names} & known]
    assert 0.35 < len(invented) / 1500 < 0.55
    assert len({name for names in invented for name in names}) > 0.9 * sum(map(len, invented))
    assert all(CODE.grade_many(problems[:200], [problem.answer for problem in problems[:200]]))


def test_train_alone_has_the_functions_that_a_visitor_tries_first() -> None:
    groups = {family.group for family in SIMPLE}
    trained = [problem for problem in CODE.problems("train", 3000, 6) if problem.group in groups]
    assert 0.05 < len(trained) / 3000 < 0.1 and {problem.group for problem in trained} == groups
    assert all(CODE.grade_many(trained, [problem.answer for problem in trained]))
    held_out = [problem.group for split in ("valid", "test", "test_seen") for problem in CODE.problems(split, 200, 6)]
    assert not groups & {*held_out}


def test_an_invented_name_is_none_that_is_taken_or_held_out_and_no_word_of_python() -> None:
    rng, taken = random.Random(2), {"v", "a"}
    names = {argument_names.invent_name(rng, taken) for _ in range(20000)}
    assert all(name.isidentifier() and not iskeyword(name) for name in names)
    assert not names & (taken | argument_names.HELD_OUT) and len(names) > 12000


def test_numbers_are_spelled_so_that_they_can_be_read_again() -> None:
    for number in range(100):
        for hyphen in "- ":
            parts = surface.spell_number(number, hyphen).replace("-", " ").split()
            assert sum(NUMBERS[part] for part in parts) == number and len(parts) == 1 + (
                number > 20 and number % 10 > 0
            )
    assert surface.spell_number(42) == "forty-two"
    rng = random.Random(1)
    text = "20 people have 4 cats. 3 of keep_3(x) are -1, 4.5 or '7' or 12, 1,000."
    spelled = {surface.spell_numbers(text, rng) for _ in range(200)}
    assert "Twenty people have four cats. Three of keep_3(x) are -1, 4.5 or '7' or twelve, 1,000." in spelled
    assert "20 people have four cats. 3 of keep_3(x) are -1, 4.5 or '7' or 12, 1,000." in spelled
    assert text not in spelled and len(spelled) == 15  # of four numbers any but none


def test_changes_do_what_they_are_called() -> None:
    rng = random.Random(2)
    text = "Write f(xs) that returns None, 'Big' or True for Ann."
    made = {name: change(text, rng) for name, change in {**surface.PROSE, **surface.EDGES}.items()}
    assert made["lower_case"] == "write f(xs) that returns None, 'Big' or True for ann."
    assert made["first_lower"] == "w" + text[1:] and made["first_upper"] == "WRITE" + text[5:]
    assert made["no_stop"] == text[:-1] and made["newline"].rstrip("\n") == text != made["newline"]
    assert made["space_after"].rstrip(" ") == text != made["space_after"]
    assert made["space_before"].lstrip(" ") == text != made["space_before"]
    assert made["double_spaces"].split() == text.split() and "  " in made["double_spaces"]
    assert surface.double_spaces("word", rng) == "word" and surface.rewrite_text(text, (), rng, surface.PROSE) == text


def test_a_story_in_another_order_states_the_same_numbers_and_names_what_its_template_does() -> None:
    templates = {template.name: template for template in word_problems.TRAINING}
    assert len(word_orders.REORDERED_STORIES) >= 30
    for name, order in word_orders.REORDERED_STORIES.items():
        story = templates[name].story
        fields = [{*re.findall(r"\{(\w+)\}", text)} - {"he", "He", "his"} for text in (story, order)]
        assert fields[0] == fields[1], name
        first = re.search(r"\{name\}|\{[hH]e\}|\{his\}|\{him\}", order)
        assert first is None or first[0] == "{name}", f"{name} refers to somebody who is not named yet"


def test_a_pronoun_stands_for_the_name_only_if_nobody_else_can_be_meant() -> None:
    rewritten = [problem for problem in MATH.problems("valid_surface", 600, 4) if problem.group == "pronoun"]
    assert len(rewritten) > 30
    pronoun = dict(NAMES)
    for problem in rewritten:
        question = problem.prompt.rpartition(". ")[2]
        he = words_of(question) & {"he", "she"}
        people = [pronoun[word] for word in words_of(problem.prompt) if word in pronoun]
        if he:
            assert people.count(he.pop()) == 1, problem.prompt


def test_problems_of_one_step_are_in_train_and_in_splits_of_their_own() -> None:
    simple = {template.name for template in word_problems.SIMPLE}
    problems_by_split = {
        split: [*MATH.problems(split, 250, 6)] for split in ("valid", "test", "valid_simple", "test_simple")
    }
    for split, problems in problems_by_split.items():
        groups = {problem.group for problem in problems}
        assert groups == simple if split.endswith("simple") else not groups & simple
        assert all(find_sample_split(problem.prompt) == split.removesuffix("_simple") for problem in problems)
    train = [*MATH.problems("train", 3000, 6)]
    share = sum(problem.group in simple for problem in train) / 3000
    assert 0.04 < share < 0.08 and simple <= {problem.group for problem in train}
    assert not {p.prompt for p in train} & {p.prompt for split in problems_by_split.values() for p in split}
    with pytest.raises(ValueError, match="unknown split 'valid_simple'"):
        CODE.problems("valid_simple", 1, 0)


def test_the_prompt_that_the_serving_page_shows_is_one_that_train_can_have() -> None:
    template = next(template for template in word_problems.SIMPLE if template.name == "bags_with_each")
    rng = random.Random(0)
    story = word_problems.sample_story(template, rng)
    fields = {
        **story.fields,
        "name": "Tom",
        "he": "he",
        "has": "has",
        "bags": 3,
        "bag": "bags",
        "each": 4,
        "item": "apples",
    }
    prompts = {f"{template.story} {question}".format_map(fields) for question in template.questions}
    assert VISITOR in prompts


def test_a_report_gives_the_accuracy_of_each_change_the_worst_first() -> None:
    problem = next(iter(MATH.problems("valid", 1, 0)))
    groups = ["name", "order", "name", "order", "newline"]
    found = summarize_groups([replace(problem, group=group) for group in groups], [True, False, True, True, True])
    assert [*found] == ["order", "name", "newline"] and found["order"] == {
        "problems": 2, "right": 1, "accuracy_95": [0.09453, 0.90547]
    }  # fmt: skip
    assert evaluate.format_worst_groups(found) == "order 1 of 2, name 2 of 2, newline 1 of 1"
    many = summarize_groups([replace(problem, group=f"{place:02}") for place in range(30)], [True] * 30)
    assert evaluate.format_worst_groups(many).endswith("11 1 of 1, …")


def test_a_surface_split_is_compared_with_the_split_that_it_rewrites_and_with_no_other() -> None:
    where = {"task": "math", "split": "valid_surface", "seed": 0, "problems": 300}
    for other in ("valid", "valid_surface"):
        evaluate.check_same(Path("report.json"), {**where, "split": other, "left_out": []}, where, [])
    for change in ({"split": "test"}, {"split": "test_surface"}, {"task": "code"}, {"seed": 1}, {"left_out": [3]}):
        with pytest.raises(ValueError, match="of other problems"):
            evaluate.check_same(Path("report.json"), {**where, "left_out": [], **change}, where, [])
