"""Samples problems of one to three calculations with many nouns, in a visitor's words; only `train` has them.

Their answers are equations without nouns ("That is 6*8=48. Then 48-20=28."), so a small model can answer problems with
words that it has never seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from functools import partial

from . import everyday_phrases, first_names, surface
from .everyday_phrases import (
    COLORS,
    DAYS,
    DECREASES,
    HOLDERS,
    INCREASES,
    PLACES,
    PLURALS,
    QUESTIONS,
    STARTS,
    STORIES,
    VERBS,
)
from .invented_words import invent_syllables
from .problem import Problem, find_sample_split
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
from .word_templates import NAMES

LONGER_SHARE = 0.35  # share of the problems with a start and one or two changes
INVENTED_NOUN_SHARE, INVENTED_NAME_SHARE = 0.3, 0.1
HIGHEST_INPUTS = (20, 50, 90)  # per problem, one of these is the highest number of the story, factors aside
RELATIVES = {"he": ("brother", "father", "cousin", "friend"), "she": ("sister", "mother", "cousin", "friend")}
NOUN_POOLS = {  # by field
    "item": everyday_phrases.NOUNS.split(),
    "kind": everyday_phrases.NOUNS.split(),
    "box": everyday_phrases.BOXES.split(),
    "person": everyday_phrases.PERSONS.split(),
    "part": everyday_phrases.PARTS.split(),
    "period": everyday_phrases.PERIODS,
    "measure": everyday_phrases.MEASURES,
}
INVENTED_NOUN_FIELDS = ("item", "kind", "person", "part")  # fields that may have an invented noun
PARSED_STORIES = tuple((parse_steps(steps), phrases) for steps, phrases in STORIES)
FIELD = re.compile(r"\{(\w+)\}")
VOWEL_START = re.compile(r"(?!uni|eu|one|us)[aeiou]|hour")  # of words that have the article "an"


def sample_rewritable_problem(rng: random.Random) -> surface.RewritableProblem:
    """Samples a problem whose prompt is hashed to `train`."""
    while True:
        problem = _sample_longer_story(rng) if rng.random() < LONGER_SHARE else _sample_story(rng)
        if find_sample_split(problem.prompt) == "train":
            return surface.RewritableProblem(problem, partial(_rewrite, problem))


def pluralize(noun: str) -> str:
    """Returns the plural of an English noun in the singular."""
    if noun in PLURALS:
        return PLURALS[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"


def sample_numbers(steps: Sequence[Calculation], rng: random.Random) -> dict[str, int]:
    """Samples the inputs of steps until every step keeps the rules on numbers; returns all values by name."""
    results = {step.result for step in steps}
    operands = {name for step in steps for name in (step.left, step.right)}
    inputs = sorted(name for name in operands - results if name.isalpha())
    while True:
        highest, values = rng.choice(HIGHEST_INPUTS), {name: int(name) for name in operands if name.isdigit()}
        for name in inputs:
            values[name] = rng.choice(FACTORS) if name in "pq" else rng.randint(LOWEST_RESULT, highest)
        if run_steps(steps, values):
            return values


def _sample_story(rng: random.Random) -> Problem:
    steps, phrases = rng.choice(PARSED_STORIES)
    return _make_problem(rng.choice(phrases), steps, sample_numbers(steps, rng), rng)


def _sample_longer_story(rng: random.Random) -> Problem:
    """Samples a start, one or two changes of what is counted, and a question."""
    while True:
        values = {"n": rng.randint(LOWEST_RESULT, rng.choice(HIGHEST_INPUTS))}
        steps = list[Calculation]()
        sentences = [rng.choice(STARTS)]
        for place in range(rng.choice((1, 1, 2))):
            op, phrases = rng.choice((("+", INCREASES), ("-", DECREASES)))
            values[f"o{place}"] = rng.randint(LOWEST_RESULT, HIGHEST_RESULT // 3)
            steps.append(Calculation(f"y{place}", f"y{place - 1}" if place else "n", op, f"o{place}"))
            opening = rng.choice(("", "", "Then ", "Later ", "Now "))
            sentences.append(opening + rng.choice(phrases).replace("{o}", f"{{o{place}}}"))
        if run_steps(steps, values):
            # A start without {items} counts passengers or dollars, so its question does not name items.
            questions = [each for each in QUESTIONS if "{items}" in sentences[0] or "{" not in each]
            return _make_problem(f"{'. '.join(sentences)}. {rng.choice(questions)}", steps, values, rng)


def _make_problem(phrase: str, steps: Sequence[Calculation], values: dict[str, int], rng: random.Random) -> Problem:
    words = _sample_words(rng)
    prompt = FIELD.sub(lambda found: str(values.get(found[1], words.get(found[1], ""))), phrase)
    prompt = re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), prompt)
    equations = (f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}" for step in steps)
    answer = " ".join(f"{'Then' if place else 'That is'} {equation}." for place, equation in enumerate(equations))
    return Problem(prompt, f"{answer}\n#### {values[steps[-1].result]}", "everyday")


def _sample_words(rng: random.Random) -> dict[str, str]:
    """Samples the words of all fields that are not numbers."""
    words = dict[str, str]()
    (name, pronoun), (pal, _) = (_sample_name(rng) for _ in range(2))
    words.update(name=name, pal=pal, he=pronoun, him=OBJECT_PRONOUNS[pronoun], his=POSSESSIVE_PRONOUNS[pronoun])
    words.update(He=words["he"].capitalize(), His=words["his"].capitalize())
    for field, pool in NOUN_POOLS.items():
        noun = rng.choice(pool)
        if field in INVENTED_NOUN_FIELDS and rng.random() < INVENTED_NOUN_SHARE:
            noun = invent_syllables(rng.randint(1, 3), rng)
        with_article = f"{'an' if VOWEL_START.match(noun) else 'a'} {noun}"
        words |= {field: noun, f"an_{field}": with_article, f"a_{field}": with_article}
        words |= {pluralize(field): pluralize(noun), f"{field}s": pluralize(noun)}
    words |= {f"A{field[1:]}": text.capitalize() for field, text in words.items() if field.startswith(("a_", "an_"))}
    words["do"], words["does"], words["did"], words["units"] = rng.choice(VERBS)
    words["color"], words["other"] = rng.sample(COLORS, 2)
    words["day"], words["day2"] = rng.sample(DAYS, 2)
    words["place"], words["Holder"] = rng.choice(PLACES), rng.choice(HOLDERS)
    words["relative"] = rng.choice(RELATIVES[rng.choice(("he", "she"))])
    return words


def _sample_name(rng: random.Random) -> tuple[str, str]:
    """Samples a person's name and pronoun."""
    pronoun = rng.choice(("he", "she"))
    if rng.random() < INVENTED_NAME_SHARE:
        return invent_syllables(rng.randint(1, 3), rng).capitalize(), pronoun
    return rng.choice([*first_names.TRAINING[pronoun], *(name for name, own in NAMES if own == pronoun)]), pronoun


def _rewrite(problem: Problem, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    return surface.rewrite_story(problem, {}, lambda unchanged: unchanged, changes, rng, split)
