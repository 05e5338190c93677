"""Generates word problems of one to five dependent steps from templates, by a seed, and grades them.

`valid` and `test` have two to five steps and are written as the templates say. `train` also has problems of one step,
problems in everyday words (`everyday`), problems of a grammar's training families (`story_families`), and prompts
written as people type them; `valid_surface` and `test_surface` are `valid` and `test` with one such change per prompt.
`valid_simple` and `test_simple` have the problems of one step that are not in `train`, `valid_families` and
`test_families` the held-out families, `valid_seen` and `test_seen` problems of the training families that are not in
`train`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runtime.errors import UserError

from . import everyday, first_names, story_families, surface
from .problem import Problem, split_of_sample
from .word_orders import ORDERS
from .word_steps import HIM, HIS, Calculation, parse_steps, run_steps
from .word_templates import NAMES, THREE_STEPS, TWO_STEPS, Template
from .word_templates_held_out import HELD_OUT_TEMPLATES
from .word_templates_long import FIVE_STEPS, FOUR_STEPS
from .word_templates_simple import SIMPLE_TEMPLATES

SPLITS = (
    "train", "valid", "test", "test_templates", "valid_surface", "test_surface", "valid_simple", "test_simple",
    "valid_families", "test_families", "valid_seen", "test_seen",
)  # fmt: skip
FAMILY_SHARE = 0.5  # share of the other training problems that are of the grammar
EVERYDAY_SHARE = 0.15  # share of the training problems in everyday words
SIMPLE_SHARE = 0.12  # share of the templates' training problems with one step
MAX_FRUITLESS_DRAWS = 20_000
FINAL_NUMBER = re.compile(r"\s*(-?\d+(?:,\d{3})*|-?\d+)(?![\d,]*\d)(?!\.\d)")


Source = Callable[[], surface.RewritableProblem]


@dataclass(frozen=True, slots=True)
class ParsedTemplate:
    """A template made ready for sampling: steps parsed, and `[x]` turned into the text field `eq_x`."""

    name: str
    inputs: tuple[tuple[str, int, int], ...]
    steps: tuple[Calculation, ...]
    constants: dict[str, int]
    story: str
    asks: tuple[str, ...]
    answer: str
    pools: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Story:
    """A problem before its texts are filled in: `fields` has the numbers, names and nouns by name."""

    template: ParsedTemplate
    story: str
    ask: str
    fields: Mapping[str, int | str]


def compile_template(template: Template) -> ParsedTemplate:
    """Parses a template's steps, and makes its equations fields of the answer."""
    steps = parse_steps(template.steps)
    operands = {operand for step in steps for operand in (step.left, step.right)}
    return ParsedTemplate(
        name=template.name,
        inputs=tuple((name, low, high - low + 1) for name, (low, high) in template.inputs.items()),
        steps=steps,
        constants={operand: int(operand) for operand in operands if operand.isdigit()},
        story=template.story,
        asks=template.asks,
        answer=re.sub(r"\[(\w+)\]", r"{eq_\1}", template.answer) + f"\n#### {{{steps[-1].result}}}",
        pools=tuple(template.pools.items()),
    )


TRAINING = tuple(compile_template(template) for template in TWO_STEPS + THREE_STEPS + FOUR_STEPS + FIVE_STEPS)
HELD_OUT = tuple(compile_template(template) for template in HELD_OUT_TEMPLATES)
SIMPLE = tuple(compile_template(template) for template in SIMPLE_TEMPLATES)
TEMPLATES = {"templates": HELD_OUT, "simple": SIMPLE}  # by the second part of a split's name, else TRAINING


def draw_numbers(template: ParsedTemplate, rng: random.Random) -> dict[str, int]:
    """Samples inputs until every step keeps the rules; returns all values by name."""
    uniform = rng.random
    while True:
        values = dict(template.constants)
        for name, low, size in template.inputs:
            values[name] = low + int(uniform() * size)
        if run_steps(template.steps, values):
            return values


def draw_story(template: ParsedTemplate, rng: random.Random) -> Story:
    """Samples numbers, names, nouns and the closing question of a template."""
    values = draw_numbers(template, rng)
    fields: dict[str, int | str] = {**values}
    for step in template.steps:
        equation = f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}"
        fields[f"eq_{step.result}"] = equation
    (name, he), (pal, pal_he) = rng.sample(NAMES, 2)
    fields.update(name=name, pal=pal, he=he, He=he.capitalize(), his=HIS[he], him=HIM[he], pal_he=pal_he)
    for pool, words in template.pools:
        fields[pool] = rng.choice(words)
    return Story(template, template.story, rng.choice(template.asks), fields)


def write_problem(story: Story) -> Problem:
    """Returns the problem with its texts filled in."""
    prompt = f"{story.story} {story.ask}".format_map(story.fields)
    return Problem(prompt, story.template.answer.format_map(story.fields), story.template.name)


def rename(story: Story, rng: random.Random, split: str) -> Story:
    """Gives both people other names, in the answer too, from a pool of names that no template has."""
    pool = first_names.TRAINING if split == "train" else first_names.HELD_OUT
    name = rng.choice(pool[str(story.fields["he"])])
    pal = rng.choice([other for other in pool[str(story.fields["pal_he"])] if other != name])
    return replace(story, fields={**story.fields, "name": name, "pal": pal})


def reorder(story: Story, rng: random.Random, split: str) -> Story:
    """Rewrites the story in another order, if its template has one."""
    return replace(story, story=ORDERS.get(story.template.name, story.story))


def refer(story: Story, rng: random.Random, split: str) -> Story:
    """Replaces the question's pronoun by the name, or its name by the pronoun if nobody else can be meant."""
    if "{he}" in story.ask:
        return replace(story, ask=story.ask.replace("{he}", "{name}"))
    clear = "{name}" in story.story and ("{pal}" not in story.story or story.fields["he"] != story.fields["pal_he"])
    ask = re.sub(r"\b(does|can|must) \{name\}", r"\1 {he}", story.ask) if clear else story.ask
    return replace(story, ask=ask)


STORY_CHANGES: Mapping[str, Callable[[Story, random.Random, str], Story]] = {
    "name": rename, "order": reorder, "pronoun": refer
}  # fmt: skip
CHANGES = (*STORY_CHANGES, *surface.CHANGES)


def rewrite(story: Story, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem with changes to its story and then to its prompt's text."""
    return surface.rewrite_story(story, STORY_CHANGES, write_problem, changes, rng, split)


def sample_problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of a split; the same arguments always give the same problems.

    Within one call only the train split may repeat a prompt. `test_templates` has templates that no other split uses,
    `valid_families` and `test_families` have families that no other split uses; a `_surface` split has the problems of
    `valid` or `test` of that seed, one change each, which `group` names. Raises UserError for an unknown split, or if a
    split runs out of new prompts.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    plain = split.removesuffix("_surface")
    return surface.rewrite_for(split, seed, _draw_all(plain, count, seed), CHANGES)


def _draw_all(split: str, count: int, seed: int) -> Iterator[surface.RewritableProblem]:
    base, _, kind = split.partition("_")
    rng, seen = random.Random(f"{split}-{seed}"), set[str]()
    sources = (
        _sample_train_sources(seed, rng) if split == "train" else itertools.repeat(_choose_source(base, kind, rng))
    )
    for draw in itertools.islice(sources, count):
        for _ in range(MAX_FRUITLESS_DRAWS):
            draft = draw()
            prompt = draft.problem.prompt
            if prompt not in seen and (kind == "templates" or split_of_sample(prompt) == base):
                break
        else:
            raise UserError(f"no new prompt in {MAX_FRUITLESS_DRAWS} draws for the split {split!r}; request fewer")
        if split != "train":
            seen.add(prompt)
        yield draft


def _choose_source(base: str, kind: str, rng: random.Random) -> Source:
    if kind == "everyday":
        return partial(everyday.draw_draft, rng)
    if kind in ("families", "seen"):
        return partial(story_families.draw_draft, base if kind == "families" else "train", base, rng)
    return partial(_draw_draft, TEMPLATES.get(kind, TRAINING), rng)


def _sample_train_sources(seed: int, rng: random.Random) -> Iterator[Source]:
    simple, families = random.Random(f"simple-{seed}"), random.Random(f"families-{seed}")
    everyday_words = random.Random(f"everyday-{seed}")
    while True:
        kind = "families" if families.random() < FAMILY_SHARE else "simple" if simple.random() < SIMPLE_SHARE else ""
        if everyday_words.random() < EVERYDAY_SHARE:
            kind = "everyday"
        yield _choose_source("train", kind, rng)


def _draw_draft(templates: Sequence[ParsedTemplate], rng: random.Random) -> surface.RewritableProblem:
    story = draw_story(rng.choice(templates), rng)
    return surface.RewritableProblem(write_problem(story), partial(rewrite, story))


def find_final_number(text: str) -> int | None:
    """Returns the integer right after the last `####` of a text, or None if there is none."""
    _, marker, tail = text.rpartition("####")
    found = FINAL_NUMBER.match(tail) if marker else None
    return int(found.group(1).replace(",", "")) if found and len(found.group(1)) < 20 else None


def grade(problem: Problem, text: str) -> bool:
    """Returns whether a text's final number, after its last `####`, is the problem's right answer."""
    given = find_final_number(text)
    return given is not None and given == find_final_number(problem.answer)
