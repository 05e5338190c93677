"""Samples the word problems of the task `math`, of one to five steps that use each other's results, and grades them.

The splits and their problems:

* `valid`, `test`: templates of two to five steps, worded as the templates are;
* `train`: these, templates of one step, problems in everyday words (`everyday`) and of a grammar's training families
  (`story_families`); some prompts are rewritten as people type them (`surface`);
* `test_templates`: templates that no other split has;
* `valid_surface`, `test_surface`: `valid` and `test` with one change per prompt of those that `train` has;
* `valid_simple`, `test_simple`: templates of one step;
* `valid_families`, `test_families`: families of the grammar that no other split has;
* `valid_seen`, `test_seen`: the grammar's training families, but other problems than in `train`.
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
from .problem import Problem, find_sample_split
from .word_orders import REORDERED_STORIES
from .word_steps import OBJECT_PRONOUNS, POSSESSIVE_PRONOUNS, Calculation, parse_steps, run_steps
from .word_templates import NAMES, THREE_STEPS, TWO_STEPS, Template
from .word_templates_held_out import HELD_OUT_TEMPLATES
from .word_templates_long import FIVE_STEPS, FOUR_STEPS
from .word_templates_simple import SIMPLE_TEMPLATES

SPLITS = (
    "train", "valid", "test", "test_templates", "valid_surface", "test_surface", "valid_simple", "test_simple",
    "valid_families", "test_families", "valid_seen", "test_seen",
)  # fmt: skip
EVERYDAY_SHARE = 0.15  # share of the training problems in everyday words
FAMILY_SHARE = 0.5  # share of the other training problems that are of the grammar's families
SIMPLE_SHARE = 0.12  # share of the remaining training problems, which are of templates, that have one step
MAX_ATTEMPTS = 20_000  # at a new prompt
FINAL_NUMBER = re.compile(r"\s*(-?\d+(?:,\d{3})*|-?\d+)(?![\d,]*\d)(?!\.\d)")

ProblemSampler = Callable[[], surface.RewritableProblem]


@dataclass(frozen=True, slots=True)
class ParsedTemplate:
    """Holds a template in the form that sampling needs.

    Attributes:
        inputs: name, lowest value and number of values of each number that the story gives.
        constants: numbers that the steps use as they are, by their digits.
        answer: the right answer with the final number; an equation `[x]` is now the field `eq_x`.
    """

    name: str
    inputs: tuple[tuple[str, int, int], ...]
    steps: tuple[Calculation, ...]
    constants: dict[str, int]
    story: str
    questions: tuple[str, ...]
    answer: str
    pools: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class TemplateStory:
    """Holds a problem before its texts are filled in: `fields` has the numbers, names and nouns by name."""

    template: ParsedTemplate
    story: str
    question: str
    fields: Mapping[str, int | str]


def parse_template(template: Template) -> ParsedTemplate:
    """Parses a template's steps, and makes its equations fields of the answer."""
    steps = parse_steps(template.steps)
    operands = {operand for step in steps for operand in (step.left, step.right)}
    return ParsedTemplate(
        name=template.name,
        inputs=tuple((name, low, high - low + 1) for name, (low, high) in template.inputs.items()),
        steps=steps,
        constants={operand: int(operand) for operand in operands if operand.isdigit()},
        story=template.story,
        questions=template.questions,
        answer=re.sub(r"\[(\w+)\]", r"{eq_\1}", template.answer) + f"\n#### {{{steps[-1].result}}}",
        pools=tuple(template.pools.items()),
    )


TRAINING = tuple(parse_template(template) for template in TWO_STEPS + THREE_STEPS + FOUR_STEPS + FIVE_STEPS)
HELD_OUT = tuple(parse_template(template) for template in HELD_OUT_TEMPLATES)
SIMPLE = tuple(parse_template(template) for template in SIMPLE_TEMPLATES)
TEMPLATES = {"templates": HELD_OUT, "simple": SIMPLE}  # by the second part of a split's name; TRAINING for all others


def sample_numbers(template: ParsedTemplate, rng: random.Random) -> dict[str, int]:
    """Samples inputs until every step keeps the rules on numbers; returns all values by name."""
    while True:
        values = dict(template.constants)
        for name, low, size in template.inputs:
            values[name] = low + int(rng.random() * size)
        if run_steps(template.steps, values):
            return values


def sample_story(template: ParsedTemplate, rng: random.Random) -> TemplateStory:
    """Samples numbers, names, nouns and the question's wording for a template."""
    values = sample_numbers(template, rng)
    fields: dict[str, int | str] = {**values}
    for step in template.steps:
        equation = f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}"
        fields[f"eq_{step.result}"] = equation
    (name, pronoun), (pal, pal_pronoun) = rng.sample(NAMES, 2)
    fields.update(name=name, pal=pal, he=pronoun, He=pronoun.capitalize(), pal_he=pal_pronoun)
    fields.update(his=POSSESSIVE_PRONOUNS[pronoun], him=OBJECT_PRONOUNS[pronoun])
    for name, words in template.pools:
        fields[name] = rng.choice(words)
    return TemplateStory(template, template.story, rng.choice(template.questions), fields)


def write_problem(story: TemplateStory) -> Problem:
    """Returns the problem with its texts filled in."""
    prompt = f"{story.story} {story.question}".format_map(story.fields)
    return Problem(prompt, story.template.answer.format_map(story.fields), story.template.name)


def rename(story: TemplateStory, rng: random.Random, split: str) -> TemplateStory:
    """Gives both people other names, in the answer too, from a pool of names that no template has."""
    pool = first_names.TRAINING if split == "train" else first_names.HELD_OUT
    name = rng.choice(pool[str(story.fields["he"])])
    pal = rng.choice([other for other in pool[str(story.fields["pal_he"])] if other != name])
    return replace(story, fields={**story.fields, "name": name, "pal": pal})


def reorder(story: TemplateStory, rng: random.Random, split: str) -> TemplateStory:
    """Puts the sentences of the story in another order, if its template allows one."""
    return replace(story, story=REORDERED_STORIES.get(story.template.name, story.story))


def swap_pronoun(story: TemplateStory, rng: random.Random, split: str) -> TemplateStory:
    """Replaces the question's pronoun by the name, or its name by the pronoun if that can mean nobody else."""
    question = story.question
    if "{he}" in question:
        question = question.replace("{he}", "{name}")
    elif "{name}" in story.story and ("{pal}" not in story.story or story.fields["he"] != story.fields["pal_he"]):
        question = re.sub(r"\b(does|can|must) \{name\}", r"\1 {he}", question)
    return replace(story, question=question)


STORY_CHANGES: Mapping[str, Callable[[TemplateStory, random.Random, str], TemplateStory]] = {
    "name": rename, "order": reorder, "pronoun": swap_pronoun
}  # fmt: skip
CHANGES = (*STORY_CHANGES, *surface.CHANGES)


def rewrite(story: TemplateStory, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem of a story after changes to the story, then to the prompt."""
    return surface.rewrite_story(story, STORY_CHANGES, write_problem, changes, rng, split)


def sample_problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of a split; the same arguments always give the same problems.

    Only `train` may repeat a prompt within one call. A `_surface` split has the problems of `valid` or `test` of that
    seed, each with one change, which `group` names. Raises UserError for an unknown split, or if a split runs out of
    new prompts.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    plain = split.removesuffix("_surface")
    return surface.rewrite_split(split, seed, sample_rewritable_problems(plain, count, seed), CHANGES)


def sample_rewritable_problems(split: str, count: int, seed: int) -> Iterator[surface.RewritableProblem]:
    """Yields `count` problems of a split other than a `_surface` split, before any rewriting."""
    base, _, kind = split.partition("_")
    rng, seen = random.Random(f"{split}-{seed}"), set[str]()
    samplers = (
        _sample_train_samplers(seed, rng) if split == "train" else itertools.repeat(_choose_sampler(base, kind, rng))
    )
    for sample_problem in itertools.islice(samplers, count):
        for _ in range(MAX_ATTEMPTS):
            draft = sample_problem()
            prompt = draft.problem.prompt
            if prompt not in seen and (kind == "templates" or find_sample_split(prompt) == base):
                break
        else:
            raise UserError(f"no new prompt in {MAX_ATTEMPTS} attempts for the split {split!r}; request fewer")
        if split != "train":
            seen.add(prompt)
        yield draft


def _choose_sampler(base: str, kind: str, rng: random.Random) -> ProblemSampler:
    """Returns the sampler of a split's problems, by the parts of its name. `everyday` is a kind of `train` alone."""
    if kind == "everyday":
        return partial(everyday.sample_rewritable_problem, rng)
    if kind in ("families", "seen"):
        family_split = base if kind == "families" else "train"
        return partial(story_families.sample_rewritable_problem, family_split, base, rng)
    return partial(_sample_of_templates, TEMPLATES.get(kind, TRAINING), rng)


def _sample_train_samplers(seed: int, rng: random.Random) -> Iterator[ProblemSampler]:
    """Samples a kind of training problem, again and again, and yields its sampler."""
    simple_rng, family_rng = random.Random(f"simple-{seed}"), random.Random(f"families-{seed}")
    everyday_rng = random.Random(f"everyday-{seed}")
    while True:
        if family_rng.random() < FAMILY_SHARE:
            kind = "families"
        else:
            kind = "simple" if simple_rng.random() < SIMPLE_SHARE else ""
        if everyday_rng.random() < EVERYDAY_SHARE:
            kind = "everyday"
        yield _choose_sampler("train", kind, rng)


def _sample_of_templates(templates: Sequence[ParsedTemplate], rng: random.Random) -> surface.RewritableProblem:
    story = sample_story(rng.choice(templates), rng)
    return surface.RewritableProblem(write_problem(story), partial(rewrite, story))


def find_final_number(text: str) -> int | None:
    """Returns the integer right after the last `####` of a text, or None if no integer is there."""
    _, marker, tail = text.rpartition("####")
    found = FINAL_NUMBER.match(tail) if marker else None
    return int(found.group(1).replace(",", "")) if found and len(found.group(1)) < 20 else None


def grade(problem: Problem, text: str) -> bool:
    """Returns whether a text's final number, after its last `####`, is the problem's right answer."""
    given = find_final_number(text)
    return given is not None and given == find_final_number(problem.answer)
