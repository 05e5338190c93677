"""Samples problems of one to three calculations, worded as a visitor would, with many nouns; `train` alone has them.

Their answers are equations without nouns ("That is 6*8=48. Then 48-20=28."), so a small model can write one for words
that it has never seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from functools import partial

from . import everyday_phrases, first_names, surface
from .everyday_phrases import COLORS, DAYS, DEEDS, ENDS, HOLDERS, LESS, MORE, PLACES, PLURALS, STARTS, STORIES
from .invented_words import invent_syllables
from .problem import Problem, split_of_sample
from .word_steps import FACTORS, HIGHEST_RESULT, HIM, HIS, LOWEST_RESULT, Calculation, parse_steps, run_steps
from .word_templates import NAMES

LONGER_SHARE = 0.35  # share of the problems with a start and one or two changes
INVENTED_NOUN, INVENTED_NAME = 0.3, 0.1
HIGHEST = (20, 50, 90)  # one of these bounds the numbers other than factors
RELATIVES = {"he": ("brother", "father", "cousin", "friend"), "she": ("sister", "mother", "cousin", "friend")}
POOLS = {
    "item": everyday_phrases.NOUNS.split(),
    "kind": everyday_phrases.NOUNS.split(),
    "box": everyday_phrases.BOXES.split(),
    "person": everyday_phrases.PERSONS.split(),
    "part": everyday_phrases.PARTS.split(),
    "period": everyday_phrases.PERIODS,
    "measure": everyday_phrases.MEASURES,
}
OPEN = ("item", "kind", "person", "part")  # the pools that have invented nouns too
KINDS = tuple((parse_steps(steps), phrases) for steps, phrases in STORIES)
SLOT = re.compile(r"\{(\w+)\}")
VOWEL = re.compile(r"(?!uni|eu|one|us)[aeiou]|hour")  # beginnings of words that have "an"


def draw_draft(rng: random.Random) -> surface.RewritableProblem:
    """Samples a problem, whose prompt is hashed to `train`."""
    while True:
        problem = _draw_longer(rng) if rng.random() < LONGER_SHARE else _draw_story(rng)
        if split_of_sample(problem.prompt) == "train":
            return surface.RewritableProblem(problem, partial(_rewrite, problem))


def pluralize(noun: str) -> str:
    """Returns the plural of an English noun in the singular."""
    if noun in PLURALS:
        return PLURALS[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"


def draw_numbers(steps: Sequence[Calculation], rng: random.Random) -> dict[str, int]:
    """Samples the inputs of steps until every step keeps the rules on numbers; returns all values by name."""
    results = {step.result for step in steps}
    operands = {name for step in steps for name in (step.left, step.right)}
    names = sorted(name for name in operands - results if name.isalpha())
    while True:
        highest, values = rng.choice(HIGHEST), {name: int(name) for name in operands if name.isdigit()}
        for name in names:
            values[name] = rng.choice(FACTORS) if name in "pq" else rng.randint(LOWEST_RESULT, highest)
        if run_steps(steps, values):
            return values


def _draw_story(rng: random.Random) -> Problem:
    steps, phrases = rng.choice(KINDS)
    return _make_problem(rng.choice(phrases), steps, draw_numbers(steps, rng), rng)


def _draw_longer(rng: random.Random) -> Problem:
    """Samples a start with one or two changes of what is counted."""
    while True:
        values, steps, parts = (
            {"n": rng.randint(LOWEST_RESULT, rng.choice(HIGHEST))},
            list[Calculation](),
            [rng.choice(STARTS)],
        )
        for place in range(rng.choice((1, 1, 2))):
            op, phrases = rng.choice((("+", MORE), ("-", LESS)))
            values[f"o{place}"] = rng.randint(LOWEST_RESULT, HIGHEST_RESULT // 3)
            steps.append(Calculation(f"y{place}", f"y{place - 1}" if place else "n", op, f"o{place}"))
            order = rng.choice(("", "", "Then ", "Later ", "Now "))
            parts.append(order + rng.choice(phrases).replace("{o}", f"{{o{place}}}"))
        if run_steps(steps, values):
            ends = ENDS if "{items}" in parts[0] else [end for end in ENDS if "{" not in end]
            return _make_problem(f"{'. '.join(parts)}. {rng.choice(ends)}", steps, values, rng)


def _make_problem(phrase: str, steps: Sequence[Calculation], values: dict[str, int], rng: random.Random) -> Problem:
    words = _draw_words(rng)
    prompt = SLOT.sub(lambda found: str(values.get(found[1], words.get(found[1], ""))), phrase)
    prompt = re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), prompt)
    equations = (f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}" for step in steps)
    answer = " ".join(f"{'Then' if place else 'That is'} {equation}." for place, equation in enumerate(equations))
    return Problem(prompt, f"{answer}\n#### {values[steps[-1].result]}", "everyday")


def _draw_words(rng: random.Random) -> dict[str, str]:
    """Samples a word for every slot except numbers."""
    words = dict[str, str]()
    (name, he), (pal, _) = (_draw_name(rng) for _ in range(2))
    words.update(name=name, pal=pal, he=he, He=he.capitalize(), him=HIM[he], his=HIS[he], His=HIS[he].capitalize())
    for slot, pool in POOLS.items():
        noun = rng.choice(pool)
        if slot in OPEN and rng.random() < INVENTED_NOUN:
            noun = invent_syllables(rng.randint(1, 3), rng)
        article = "an" if VOWEL.match(noun) else "a"
        words |= {slot: noun, f"an_{slot}": f"{article} {noun}", f"a_{slot}": f"{article} {noun}"}
        words |= {pluralize(slot): pluralize(noun), f"{slot}s": pluralize(noun)}
    words |= {f"A{slot[1:]}": text.capitalize() for slot, text in words.items() if slot.startswith(("a_", "an_"))}
    words["do"], words["does"], words["did"], words["units"] = rng.choice(DEEDS)
    words["color"], words["other"] = rng.sample(COLORS, 2)
    words["day"], words["day2"] = rng.sample(DAYS, 2)
    words["place"], words["Holder"] = rng.choice(PLACES), rng.choice(HOLDERS)
    words["relative"] = rng.choice(RELATIVES[rng.choice(("he", "she"))])
    return words


def _draw_name(rng: random.Random) -> tuple[str, str]:
    he = rng.choice(("he", "she"))
    if rng.random() < INVENTED_NAME:
        return invent_syllables(rng.randint(1, 3), rng).capitalize(), he
    return rng.choice([*first_names.TRAINING[he], *(name for name, pronoun in NAMES if pronoun == he)]), he


def _rewrite(problem: Problem, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    return surface.rewrite_story(problem, {}, lambda same: same, changes, rng, split)
