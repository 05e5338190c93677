"""Rewrites prompts as people type them: other spaces, case, stops, numbers as words. The answer stays the same.

A task passes `RewritableProblem`s, whose `rewrite` can make changes of its own too, such as other names in the story.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from .problem import Problem, find_sample_split

REWRITTEN_SHARE = 0.33  # of the training prompts; one in ten of these stays as it was, see `rewrite_some`
SECOND_CHANGE_SHARE = 0.5  # share of the rewritten training prompts that get one of VARIED_CHANGES too
VARIED_CHANGES = ("name", "numbers", "order")  # changes with so many forms that a model needs many examples

SMALL = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
LARGE = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES, TENS = tuple(SMALL.split()), tuple(LARGE.split())
HYPHEN_SHARE = 0.8  # share of the prompts that spell numbers from 21 on with a hyphen
# A number in a sentence: not part of a name such as keep_3, of a decimal number or of -1.
NUMBER = re.compile(r"(?<![\w'.,-])\d{1,2}(?![\w']|[.,]\d)")
SENTENCE_START = re.compile(r"(?:^|[.?!]\s+)$")
VERBATIM = re.compile(r"('[^']*'|\b(?:None|True|False)\b)")  # text that code needs exactly as written

TextChange = Callable[[str, random.Random], str]
AnyStory = TypeVar("AnyStory")


@dataclass(frozen=True, slots=True)
class RewritableProblem:
    """Holds a problem before any rewriting, and a function that rewrites it.

    Attributes:
        rewrite: called with names of changes, a source of randomness and the split (`train`, `valid` or `test`);
            returns the changed problem. It uses held-out names, except in `train`. Changes that the problem does not
            allow do nothing.
    """

    problem: Problem
    rewrite: Callable[[Collection[str], random.Random, str], Problem]


def spell_number(number: int, hyphen: str = "-") -> str:
    """Returns a number from 0 to 99 as English words."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (hyphen + ONES[ones] if ones else "")


def spell_numbers(text: str, rng: random.Random) -> str:
    """Writes all numbers of a text as words, or some of them; a word that starts a sentence gets a capital."""
    places = [found.start() for found in NUMBER.finditer(text)]
    if len(places) > 1 and rng.random() < 0.5:
        places = rng.sample(places, rng.randrange(1, len(places)))
    hyphen = "-" if rng.random() < HYPHEN_SHARE else " "

    def spell(found: re.Match[str]) -> str:
        if found.start() not in places:
            return found[0]
        words = spell_number(int(found[0]), hyphen)
        return words.capitalize() if SENTENCE_START.search(text[: found.start()]) else words

    return NUMBER.sub(spell, text)


def double_spaces(text: str, rng: random.Random) -> str:
    """Doubles some of the spaces between words, at least one."""
    words = text.split(" ")
    doubled = {*rng.sample(range(1, len(words)), rng.randint(1, max(1, len(words) // 4)))} if len(words) > 1 else {}
    return words[0] + "".join(("  " if place in doubled else " ") + words[place] for place in range(1, len(words)))


def lower_case(text: str, rng: random.Random) -> str:
    """Writes everything in lower case except what code needs exactly as written."""
    return "".join(part if place % 2 else part.lower() for place, part in enumerate(VERBATIM.split(text)))


def uppercase_word(text: str, rng: random.Random) -> str:
    """Writes the first word in upper case."""
    first, space, rest = text.partition(" ")
    return first.upper() + space + rest


# Changes to sentences, in the order in which they are made: case after words.
PROSE: Mapping[str, TextChange] = {
    "numbers": spell_numbers,
    "no_stop": lambda text, rng: re.sub(r"[.?!]+$", "", text),
    "lower_case": lower_case,
    "first_lower": lambda text, rng: text[:1].lower() + text[1:],
    "first_upper": uppercase_word,
    "double_spaces": double_spaces,
}
# Changes to the whole prompt.
EDGES: Mapping[str, TextChange] = {
    "space_before": lambda text, rng: " " * rng.randint(1, 2) + text,
    "space_after": lambda text, rng: text + " " * rng.randint(1, 3),
    "newline": lambda text, rng: text + "\n" * rng.randint(1, 2),
}
CHANGES = (*PROSE, *EDGES)


def rewrite_text(text: str, changes: Collection[str], rng: random.Random, table: Mapping[str, TextChange]) -> str:
    """Applies to a text, in the table's order, those of the changes that the table has."""
    for name, change in table.items():
        if name in changes:
            text = change(text, rng)
    return text


def rewrite_story(
    story: AnyStory,
    table: Mapping[str, Callable[[AnyStory, random.Random, str], AnyStory]],
    write_problem: Callable[[AnyStory], Problem],
    changes: Collection[str],
    rng: random.Random,
    split: str,
) -> Problem:
    """Returns the problem of a story after changes: those in `table` to the story, the others to its prompt."""
    for name, change in table.items():
        if name in changes:
            story = change(story, rng, split)
    problem = write_problem(story)
    return replace(problem, prompt=rewrite_text(problem.prompt, changes, rng, {**PROSE, **EDGES}))


def rewrite_split(
    split: str, seed: int, drafts: Iterable[RewritableProblem], changes: Sequence[str]
) -> Iterator[Problem]:
    """Yields the problems of a split: some rewritten in `train`, all in a `_surface` split, none in the others."""
    rng, plain = random.Random(f"surface-{split}-{seed}"), split.removesuffix("_surface")
    if split == "train":
        return rewrite_some(drafts, changes, rng)
    if split != plain:
        return rewrite_each(drafts, changes, rng, plain)
    return (draft.problem for draft in drafts)


def rewrite_each(
    drafts: Iterable[RewritableProblem], changes: Sequence[str], rng: random.Random, split: str
) -> Iterator[Problem]:
    """Yields every problem of a split with one change; `group` names the change.

    A prompt does not allow every change. Of those that it allows, it gets the one that was made least often so far.
    """
    made: Counter[str] = Counter()
    for draft in drafts:
        order = sorted(rng.sample(changes, len(changes)), key=made.__getitem__)
        change, problem = rewrite_once(draft, order, rng, split)
        made[change] += 1
        yield replace(problem, group=change)


def rewrite_some(drafts: Iterable[RewritableProblem], changes: Sequence[str], rng: random.Random) -> Iterator[Problem]:
    """Yields every problem, REWRITTEN_SHARE of them with one or two changes.

    A prompt is left as it was if its rewritten form is hashed to another split, so no prompt of `valid` or `test` comes
    out of the training problems.
    """
    for draft in drafts:
        problem = draft.problem
        if rng.random() < REWRITTEN_SHARE:
            change, rewritten = rewrite_once(draft, rng.sample(changes, len(changes)), rng, "train")
            if rng.random() < SECOND_CHANGE_SHARE:
                rewritten = draft.rewrite((change, rng.choice(VARIED_CHANGES)), rng, "train")
            problem = rewritten if find_sample_split(rewritten.prompt) == "train" else problem
        yield problem


def rewrite_once(
    draft: RewritableProblem, changes: Sequence[str], rng: random.Random, split: str
) -> tuple[str, Problem]:
    """Returns the first change that the prompt allows, and the problem with that change."""
    for change in changes:
        problem = draft.rewrite((change,), rng, split)
        if problem.prompt != draft.problem.prompt:
            return change, problem
    raise AssertionError("spaces can be added to any prompt")
