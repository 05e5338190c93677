"""Composes word problems from the starts, events and questions of `story_kinds`, split by family.

A family is a start, one to three events and a question. Every kind and every two kinds in a row are in training
families; what is held out is the combination, in any order of its events (see `split_of_family`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from . import first_names, surface
from .intent_frames import split_of_pair
from .problem import Problem, split_of_sample
from .story_kinds import EVENTS, QUESTIONS, RIVAL, STARTS, Kind
from .word_steps import FACTORS, HIGHEST_RESULT, HIM, HIS, LOWEST_RESULT, Calculation, parse_steps, run_steps
from .word_templates import GOODS, HE_NAMES, PEOPLE, SHE_NAMES
from .word_templates_simple import BAGS, THINGS

EVENT_COUNTS = {1: 3, 2: 4, 3: 3}  # numbers of events, each with its share of the problems, relative to the others'
MOST_STEPS = 5
# No sum of a story is above one of these. Low ones are needed for products, whose factors are below 10.
CEILINGS = (10, 25, 50, HIGHEST_RESULT)
RANGES = {"p": FACTORS, "m": FACTORS, "t": FACTORS[1:]}  # of those numbers that have no ceiling
TRIES = 20  # per kind, to find numbers that keep the rules
ATTEMPTS = 30  # per family, before another one is sampled
WORDINGS = 200  # of one family with its numbers, to find one whose hash is of the split: one in twenty is
ORDER = ("", "Then ", "Later ", "After that, ")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")
SPENT_ON = ("a book", "a game", "a hat", "a toy", "a lamp", "a ball", "a card", "lunch", "bread", "milk")
OTHER = {"he": "she", "she": "he"}
OWN_NAMES = {"he": HE_NAMES, "she": SHE_NAMES}
COUNTED = {"i": ("item", "the {item}"), "b": ("box", "the {box}"), "d": ("dollars", "the money")}

Family = tuple[Kind, ...]
CHANGES = tuple(kind for kind in EVENTS if kind.makes != RIVAL)  # the events that others can follow
PLACES = {kind: place for kinds in (STARTS, EVENTS, QUESTIONS) for place, kind in enumerate(kinds)}
STEPS: Mapping[Kind, tuple[Calculation, ...]] = {
    kind: parse_steps(kind.steps) if kind.steps else () for kind in PLACES
}  # fmt: skip
INPUTS: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(dict.fromkeys(re.findall(r"\{([nopmt])\}", kind.phrases[0]))) for kind in PLACES
}  # fmt: skip
CLAUSES = {kind: re.sub(r"\[(\w)\]", r"{eq_\1}", kind.answer) for kind in PLACES}


@dataclass(frozen=True, slots=True)
class Part:
    """A start, event or question of one story: its sentence, and the numbers and words that are its own."""

    kind: Kind
    sentence: str
    fields: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Story:
    """A problem before its texts are filled in: `words` has the people and things of all parts."""

    parts: tuple[Part, ...]
    words: Mapping[str, str]

    def list_kinds(self) -> Family:
        """Returns the kinds of its parts."""
        return tuple(part.kind for part in self.parts)


def find_unit_after(kind: Kind, unit: str) -> str:
    """Returns the letter of what is counted after an event; a capital one is another person's."""
    return unit.upper() if kind.makes == RIVAL else kind.makes or unit


@cache
def find_common_things(pools: frozenset[tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the things that are in all of the pools."""
    return tuple(thing for thing in THINGS if all(thing in pool for pool in pools))


def list_things(family: Sequence[Kind]) -> tuple[str, ...]:
    """Returns the things that all kinds of a family can be about."""
    return find_common_things(frozenset(kind.items for kind in family if kind.items is not THINGS))


@cache
def list_kinds_after(unit: str, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Returns those of the kinds that can be about a quantity."""
    return tuple(kind for kind in kinds if unit in kind.units)


def is_sound(family: Sequence[Kind]) -> bool:
    """Returns whether each kind can follow the ones before it, no event is twice, and the answer is short enough."""
    unit = family[0].makes
    for kind in family[1:]:
        if unit not in kind.units:
            return False
        unit = find_unit_after(kind, unit)
    steps = sum(len(STEPS[kind]) for kind in family)
    return len({*family}) == len(family) and steps <= MOST_STEPS and bool(list_things(family))


def split_of_family(family: Sequence[Kind]) -> str:
    """Returns the split of a family by the places of its kinds; the order of its events does not matter."""
    return split_of_pair(PLACES[family[0]] + PLACES[family[-1]], sum(PLACES[kind] for kind in family[1:-1]))


def draw_family(split: str, rng: random.Random) -> Family:
    """Samples a family of a split."""
    counts, shares = [*EVENT_COUNTS], [*EVENT_COUNTS.values()]
    [count] = rng.choices(counts, shares)
    while True:
        family = [rng.choice(STARTS)]
        unit = family[0].makes
        for kinds in (*[CHANGES] * (count - 1), EVENTS, QUESTIONS):
            family.append(rng.choice(list_kinds_after(unit, kinds)))
            unit = find_unit_after(family[-1], unit)
        if is_sound(family) and split_of_family(family) == split:
            return tuple(family)


def draw_values(kind: Kind, before: int, now: int, highest: int, rng: random.Random) -> dict[str, int] | None:
    """Samples the numbers of one kind, and calculates its results; None if none is found that keeps the rules.

    before, now: the last two values of what is counted.
    """
    # A product of what there was has its own bound: both factors are below 10.
    top = HIGHEST_RESULT if any(step.left == "x" and step.op == "*" for step in STEPS[kind]) else highest
    for _ in range(TRIES):
        values = {"w": before, "x": now, "2": 2, "3": 3}
        for name in INPUTS[kind]:
            values[name] = rng.choice(RANGES.get(name, range(LOWEST_RESULT, highest + 1)))
        values["y"] = now if now else values.get("n", 0)  # the steps may change it
        if run_steps(STEPS[kind], values, top):
            return values
    return None


def draw_numbers(family: Family, rng: random.Random) -> list[dict[str, int]]:
    """Samples the numbers of all kinds of a family; none if they are not found soon."""
    for _ in range(ATTEMPTS):
        highest, found = rng.choice(CEILINGS), list[dict[str, int]]()
        before = now = 0
        for kind in family:
            values = draw_values(kind, before, now, highest, rng)
            if values is None:
                break
            found.append(values)
            before, now = now, values["y"]
        else:
            return found
    return []


def draw_words(family: Family, rng: random.Random) -> dict[str, str]:
    """Samples the people and things of a story.

    The others are never "he" if the first person is, so a pronoun has one meaning.
    """
    he = rng.choice([*OTHER])
    pal, rival = rng.sample(OWN_NAMES[OTHER[he]], 2)
    item = rng.choice(list_things(family))
    wares, goods, extra = rng.sample([each for each in GOODS if each != item], 3)
    bag, box, sack = rng.sample([each for each in BAGS if each != item], 3)  # no bowls in bowls
    people, crowd = rng.sample(PEOPLE, 2)
    return {
        "name": rng.choice(OWN_NAMES[he]), "pal": pal, "rival": rival, "he": he, "He": he.capitalize(),
        "him": HIM[he], "his": HIS[he], "item": item, "wares": wares, "goods": goods, "extra": extra,
        "bag": bag, "box": box, "sack": sack, "people": people, "crowd": crowd, "thing": rng.choice(SPENT_ON),
        "day": rng.choice(DAYS), "dollars": "dollars",
    }  # fmt: skip


def draw_draft(split: str, prompts: str, rng: random.Random) -> surface.RewritableProblem:
    """Samples a problem.

    Args:
        split: the split of its family.
        prompts: the split that its prompt is hashed to, so that no prompt is in two splits, a template's neither.
        rng: the source of randomness.
    """
    while True:
        family = draw_family(split, rng)
        numbers = draw_numbers(family, rng)
        for _ in range(WORDINGS if numbers else 0):
            story = word_story(family, numbers, rng)
            if split_of_sample(write_prompt(story)) == prompts:
                return surface.RewritableProblem(write_problem(story), partial(rewrite, story))


def word_story(family: Family, numbers: Sequence[Mapping[str, int]], rng: random.Random) -> Story:
    """Samples people, things and phrases for a family and its numbers."""
    words, unit, parts = draw_words(family, rng), family[0].makes, list[Part]()
    for kind, values in zip(family, numbers, strict=True):
        counted, everything = COUNTED[unit.lower()]
        equations = {
            f"eq_{step.result}": f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}"
            for step in STEPS[kind]
        }
        shown = {"unit": words[counted], "the": everything.format_map(words)}
        parts.append(Part(kind, draw_sentence(kind, rng), {**values, **equations, **shown}))
        unit = find_unit_after(kind, unit)
    return Story(tuple(parts), words)


def draw_sentence(kind: Kind, rng: random.Random) -> str:
    """Samples one of the phrases of a kind, and what is before it."""
    phrase = rng.choice(kind.phrases).replace("{who}", rng.choice(("{he}", "{he}", "{name}")))
    if phrase.endswith("?"):
        return phrase
    order = ("", "Now ") if kind.makes == RIVAL else ORDER if kind.units else ("",)
    return f"{rng.choice(order)}{phrase}."


def capitalize(text: str) -> str:
    """Returns a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write_prompt(story: Story) -> str:
    """Returns the sentences of a story with its words and numbers."""
    return " ".join(capitalize(part.sentence.format_map({**story.words, **part.fields})) for part in story.parts)


def write_problem(story: Story) -> Problem:
    """Returns the problem with its texts filled in; `group` is its number of events."""
    words = story.words
    named = {**words, **dict.fromkeys(("he", "He", "him"), words["name"])}
    clauses = list[str]()
    for part in story.parts:
        if part.kind.answer:
            # An answer has the first person's name before a pronoun.
            clauses.append(CLAUSES[part.kind].format_map({**(words if clauses else named), **part.fields}))
    answer = f"{' '.join(clauses)}\n#### {story.parts[-1].fields['y']}"
    return Problem(write_prompt(story), answer, f"events_{len(story.parts) - 2}")


def rename(story: Story, rng: random.Random, split: str) -> Story:
    """Gives all people other names, in the answer too, from a pool of names that no story has."""
    pool = first_names.TRAINING if split == "train" else first_names.HELD_OUT
    he = story.words["he"]
    pal, rival = rng.sample(pool[OTHER[he]], 2)
    name = rng.choice([name for name in pool[he] if name not in (pal, rival)])
    return replace(story, words={**story.words, "name": name, "pal": pal, "rival": rival})


def refer(story: Story, rng: random.Random, split: str) -> Story:
    """Replaces the question's pronoun by the name, or its name by the pronoun."""
    *others, last = story.parts
    ask = last.sentence
    if "{he}" in ask:
        ask = ask.replace("{he}", "{name}")
    else:
        ask = re.sub(r"\b(does|can) \{name\}", r"\1 {he}", ask)
    return replace(story, parts=(*others, replace(last, sentence=ask)))


STORY_CHANGES: Mapping[str, Callable[[Story, random.Random, str], Story]] = {"name": rename, "pronoun": refer}


def rewrite(story: Story, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem with changes to its story and then to its prompt's text."""
    return surface.rewrite_story(story, STORY_CHANGES, write_problem, changes, rng, split)
