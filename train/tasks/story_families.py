"""Composes word problems of the starts, events and questions in `story_kinds`.

A family is a start, one to three events and a question. Some families are held out for the splits `valid_families` and
`test_families`. Each kind of a held-out family, and each two kinds that follow each other in it, are in training
families too; only the combination is new. The order of a family's events does not change its split.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from . import first_names, surface
from .intent_frames import find_pair_split
from .problem import Problem, find_sample_split
from .story_kinds import BOX_UNIT, DOLLAR_UNIT, EVENTS, QUESTIONS, RIVAL_UNITS, STARTS, THING_UNIT, PartKind
from .word_steps import (
    FACTORS,
    HIGHEST_RESULT,
    LOWEST_RESULT,
    OBJECT_PRONOUNS,
    POSSESSIVE_PRONOUNS,
    Calculation,
    parse_steps,
    run_steps,
)
from .word_templates import GOODS, HE_NAMES, PEOPLE, SHE_NAMES
from .word_templates_simple import BAGS, THINGS

EVENT_COUNT_WEIGHTS = {1: 3, 2: 4, 3: 3}  # relative frequencies of the numbers of events
MAX_STEPS = 5
# Each story samples the highest number that it may have. Low ones are needed for products, whose factors are below 10.
HIGHEST_NUMBERS = (10, 25, 50, HIGHEST_RESULT)
FACTOR_RANGES = {"p": FACTORS, "m": FACTORS, "t": FACTORS[1:]}  # by variable, see `story_kinds`
VALUE_ATTEMPTS = 20  # per kind, at numbers that keep the rules
NUMBER_ATTEMPTS = 30  # per family, before another family is sampled
WORDING_ATTEMPTS = 200  # per family and its numbers, at a prompt that is hashed to the split; one in twenty is
SENTENCE_OPENINGS = ("", "Then ", "Later ", "After that, ")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")
SPENT_ON = ("a book", "a game", "a hat", "a toy", "a lamp", "a ball", "a card", "lunch", "bread", "milk")
OTHER_PRONOUN = {"he": "she", "she": "he"}
NAMES_BY_PRONOUN = {"he": HE_NAMES, "she": SHE_NAMES}
# By unit, the key in a story's words of the noun that is counted, and a phrase for the whole quantity.
UNIT_WORDS = {THING_UNIT: ("item", "the {item}"), BOX_UNIT: ("box", "the {box}"), DOLLAR_UNIT: ("dollars", "the money")}
UNIT_WORDS |= {RIVAL_UNITS[unit]: words for unit, words in UNIT_WORDS.items()}

StoryFamily = tuple[PartKind, ...]
INNER_EVENTS = tuple(kind for kind in EVENTS if not kind.of_rival)  # those that another event can follow
PLACES = {kind: place for kinds in (STARTS, EVENTS, QUESTIONS) for place, kind in enumerate(kinds)}  # in their lists
STEPS: Mapping[PartKind, tuple[Calculation, ...]] = {
    kind: parse_steps(kind.steps) if kind.steps else () for kind in PLACES
}  # fmt: skip
INPUTS: Mapping[PartKind, tuple[str, ...]] = {
    kind: tuple(dict.fromkeys(re.findall(r"\{([nopmt])\}", kind.phrases[0]))) for kind in PLACES
}  # fmt: skip
ANSWER_SENTENCES = {kind: re.sub(r"\[(\w)\]", r"{eq_\1}", kind.answer) for kind in PLACES}


@dataclass(frozen=True, slots=True)
class StoryPart:
    """Holds a start, event or question of one story: its sentence, and the numbers and words of its fields alone."""

    kind: PartKind
    sentence: str
    fields: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Story:
    """Holds a problem before its texts are filled in: `words` has the people and things of all parts."""

    parts: tuple[StoryPart, ...]
    words: Mapping[str, str]

    def list_kinds(self) -> StoryFamily:
        """Returns the kinds of its parts."""
        return tuple(part.kind for part in self.parts)


def find_unit_after(kind: PartKind, unit: str) -> str:
    """Returns the unit of the quantity after a part, if `unit` is the unit before it."""
    return RIVAL_UNITS[unit] if kind.of_rival else kind.unit_after or unit


@cache
def find_common_things(pools: frozenset[tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the things that all pools have."""
    return tuple(thing for thing in THINGS if all(thing in pool for pool in pools))


def list_things(family: Sequence[PartKind]) -> tuple[str, ...]:
    """Returns the things that all kinds of a family can be about."""
    return find_common_things(frozenset(kind.items for kind in family if kind.items is not THINGS))


@cache
def select_kinds(unit: str, kinds: tuple[PartKind, ...]) -> tuple[PartKind, ...]:
    """Returns those of the kinds that can follow a quantity of this unit."""
    return tuple(kind for kind in kinds if unit in kind.units)


def is_sound(family: Sequence[PartKind]) -> bool:
    """Returns whether each kind can follow the ones before it, no kind repeats, and the answer is short enough."""
    unit = family[0].unit_after
    for kind in family[1:]:
        if unit not in kind.units:
            return False
        unit = find_unit_after(kind, unit)
    steps = sum(len(STEPS[kind]) for kind in family)
    return len({*family}) == len(family) and steps <= MAX_STEPS and bool(list_things(family))


def find_family_split(family: Sequence[PartKind]) -> str:
    """Returns the split of a family: train, valid or test. It depends on the places of the kinds in their lists."""
    return find_pair_split(PLACES[family[0]] + PLACES[family[-1]], sum(PLACES[kind] for kind in family[1:-1]))


def sample_family(split: str, rng: random.Random) -> StoryFamily:
    """Samples a family of a split: train, valid or test."""
    [event_count] = rng.choices([*EVENT_COUNT_WEIGHTS], [*EVENT_COUNT_WEIGHTS.values()])
    while True:
        family = [rng.choice(STARTS)]
        unit = family[0].unit_after
        for kinds in (*[INNER_EVENTS] * (event_count - 1), EVENTS, QUESTIONS):
            family.append(rng.choice(select_kinds(unit, kinds)))
            unit = find_unit_after(family[-1], unit)
        if is_sound(family) and find_family_split(family) == split:
            return tuple(family)


def sample_values(kind: PartKind, before: int, now: int, highest: int, rng: random.Random) -> dict[str, int] | None:
    """Samples the numbers of one kind and calculates its results.

    Returns None if VALUE_ATTEMPTS did not find numbers that keep the rules.

    Args:
        kind: the kind of the part.
        before: the quantity before the previous part, 0 if there was none.
        now: the quantity before this part, 0 for a start.
        highest: the highest number and result that the story may have.
        rng: the source of randomness.
    """
    # The quantity times a factor may exceed `highest`: both are below 10, so the product is at most 81.
    multiplies = any(step.left == "x" and step.op == "*" for step in STEPS[kind])
    for _ in range(VALUE_ATTEMPTS):
        values = {"w": before, "x": now, "2": 2, "3": 3}
        for name in INPUTS[kind]:
            values[name] = rng.choice(FACTOR_RANGES.get(name, range(LOWEST_RESULT, highest + 1)))
        values["y"] = now if now else values.get("n", 0)  # unless a step calculates it
        if run_steps(STEPS[kind], values, HIGHEST_RESULT if multiplies else highest):
            return values
    return None


def sample_numbers(family: StoryFamily, rng: random.Random) -> list[dict[str, int]]:
    """Samples the numbers of all kinds of a family; returns an empty list if NUMBER_ATTEMPTS did not find any."""
    for _ in range(NUMBER_ATTEMPTS):
        highest, numbers = rng.choice(HIGHEST_NUMBERS), list[dict[str, int]]()
        before = now = 0
        for kind in family:
            values = sample_values(kind, before, now, highest, rng)
            if values is None:
                break
            numbers.append(values)
            before, now = now, values["y"]
        else:
            return numbers
    return []


def sample_words(family: StoryFamily, rng: random.Random) -> dict[str, str]:
    """Samples the people and things of a story, by field.

    A pronoun has one meaning: if the main person is "he", the others are "she".
    """
    pronoun = rng.choice([*OTHER_PRONOUN])
    pal, rival = rng.sample(NAMES_BY_PRONOUN[OTHER_PRONOUN[pronoun]], 2)
    item = rng.choice(list_things(family))
    wares, goods, extra = rng.sample([each for each in GOODS if each != item], 3)
    bag, box, sack = rng.sample([each for each in BAGS if each != item], 3)  # no bowls in bowls
    people, crowd = rng.sample(PEOPLE, 2)
    return {
        "name": rng.choice(NAMES_BY_PRONOUN[pronoun]), "pal": pal, "rival": rival,
        "he": pronoun, "He": pronoun.capitalize(), "him": OBJECT_PRONOUNS[pronoun], "his": POSSESSIVE_PRONOUNS[pronoun],
        "item": item, "wares": wares, "goods": goods, "extra": extra, "bag": bag, "box": box, "sack": sack,
        "people": people, "crowd": crowd, "thing": rng.choice(SPENT_ON), "day": rng.choice(DAYS), "dollars": "dollars",
    }  # fmt: skip


def sample_rewritable_problem(family_split: str, prompt_split: str, rng: random.Random) -> surface.RewritableProblem:
    """Samples a problem.

    Args:
        family_split: the split of its family.
        prompt_split: the split that its prompt is hashed to; so no prompt, of a family or a template, is in two splits.
        rng: the source of randomness.
    """
    while True:
        family = sample_family(family_split, rng)
        numbers = sample_numbers(family, rng)
        for _ in range(WORDING_ATTEMPTS if numbers else 0):
            story = sample_story(family, numbers, rng)
            if find_sample_split(write_prompt(story)) == prompt_split:
                return surface.RewritableProblem(write_problem(story), partial(rewrite, story))


def sample_story(family: StoryFamily, numbers: Sequence[Mapping[str, int]], rng: random.Random) -> Story:
    """Samples people, things and phrases for a family and its numbers."""
    words, unit, parts = sample_words(family, rng), family[0].unit_after, list[StoryPart]()
    for kind, values in zip(family, numbers, strict=True):
        noun, whole = UNIT_WORDS[unit]
        equations = {
            f"eq_{step.result}": f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}"
            for step in STEPS[kind]
        }
        unit_fields = {"unit": words[noun], "the": whole.format_map(words)}
        parts.append(StoryPart(kind, sample_sentence(kind, rng), {**values, **equations, **unit_fields}))
        unit = find_unit_after(kind, unit)
    return Story(tuple(parts), words)


def sample_sentence(kind: PartKind, rng: random.Random) -> str:
    """Samples one of the phrases of a kind, and words such as "Then" before it."""
    phrase = rng.choice(kind.phrases).replace("{who}", rng.choice(("{he}", "{he}", "{name}")))
    if phrase.endswith("?"):
        return phrase
    openings = ("", "Now ") if kind.of_rival else SENTENCE_OPENINGS if kind.units else ("",)
    return f"{rng.choice(openings)}{phrase}."


def capitalize(text: str) -> str:
    """Returns a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write_prompt(story: Story) -> str:
    """Returns the sentences of a story with its words and numbers."""
    return " ".join(capitalize(part.sentence.format_map({**story.words, **part.fields})) for part in story.parts)


def write_problem(story: Story) -> Problem:
    """Returns the problem with its texts filled in; `group` has its number of events."""
    words = story.words
    words_without_pronoun = {**words, **dict.fromkeys(("he", "He", "him"), words["name"])}
    sentences = list[str]()
    for part in story.parts:
        if part.kind.answer:
            # The first sentence of an answer has the main person's name, the others have the pronoun.
            fields = {**(words if sentences else words_without_pronoun), **part.fields}
            sentences.append(ANSWER_SENTENCES[part.kind].format_map(fields))
    answer = f"{' '.join(sentences)}\n#### {story.parts[-1].fields['y']}"
    return Problem(write_prompt(story), answer, f"events_{len(story.parts) - 2}")


def rename(story: Story, rng: random.Random, split: str) -> Story:
    """Gives all people other names, in the answer too, from a pool of names that no story has."""
    pool = first_names.TRAINING if split == "train" else first_names.HELD_OUT
    pronoun = story.words["he"]
    pal, rival = rng.sample(pool[OTHER_PRONOUN[pronoun]], 2)
    name = rng.choice([name for name in pool[pronoun] if name not in (pal, rival)])
    return replace(story, words={**story.words, "name": name, "pal": pal, "rival": rival})


def swap_pronoun(story: Story, rng: random.Random, split: str) -> Story:
    """Replaces the question's pronoun by the name, or its name by the pronoun."""
    *others, last = story.parts
    question = last.sentence
    if "{he}" in question:
        question = question.replace("{he}", "{name}")
    else:
        question = re.sub(r"\b(does|can) \{name\}", r"\1 {he}", question)
    return replace(story, parts=(*others, replace(last, sentence=question)))


STORY_CHANGES: Mapping[str, Callable[[Story, random.Random, str], Story]] = {"name": rename, "pronoun": swap_pronoun}


def rewrite(story: Story, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem of a story after changes to the story, then to the prompt."""
    return surface.rewrite_story(story, STORY_CHANGES, write_problem, changes, rng, split)
