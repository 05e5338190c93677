"""Word problems of two to five dependent steps, drawn from templates by a seed, and their grading."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.errors import UserError

from .problem import Problem, split_of_sample
from .word_templates import NAMES, THREE_STEPS, TWO_STEPS, Template
from .word_templates_held_out import HELD_OUT_TEMPLATES
from .word_templates_long import FIVE_STEPS, FOUR_STEPS

SPLITS = ("train", "valid", "test", "test_templates")
LOWEST_RESULT = 2  # from two on, every noun in the texts is rightly plural
HIGHEST_RESULT = 99
FACTORS = range(2, 10)
MAX_FRUITLESS_DRAWS = 20_000
FINAL_NUMBER = re.compile(r"\s*(-?\d+(?:,\d{3})*|-?\d+)(?![\d,]*\d)(?!\.\d)")


@dataclass(frozen=True, slots=True)
class Calculation:
    """One calculation `result = left op right`; an operand is a variable or a number written out."""

    result: str
    left: str
    op: str
    right: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template made ready for drawing: steps parsed, and `[x]` turned into the text field `eq_x`."""

    name: str
    inputs: tuple[tuple[str, int, int], ...]
    steps: tuple[Calculation, ...]
    constants: dict[str, int]
    questions: tuple[str, ...]
    answer: str
    pools: tuple[tuple[str, tuple[str, ...]], ...]


def parse_steps(text: str) -> tuple[Calculation, ...]:
    """Read steps written `total = boxes * each; left = total - eaten`.

    Raises ValueError for a step of another form, and for one that uses no result of an earlier step.
    """
    steps: list[Calculation] = []
    for part in text.split(";"):
        match part.split():
            case [result, "=", left, ("+" | "-" | "*" | "/") as op, right]:
                step = Calculation(result, left, op, right)
            case _:
                raise ValueError(f"a step must read 'result = a op b', got {part.strip()!r}")
        if steps and not {left, right} & {earlier.result for earlier in steps}:
            raise ValueError(f"the step {part.strip()!r} uses no earlier result")
        steps.append(step)
    return tuple(steps)


def calculate(left: int, op: str, right: int) -> int | None:
    """The result of one step, or None where it breaks a rule on the size of numbers."""
    if op == "+":
        result = left + right
    elif op == "-":
        result = left - right
    elif op == "*":
        if left not in FACTORS or right not in FACTORS:
            return None
        result = left * right
    else:
        if right not in FACTORS or left % right:
            return None
        result = left // right
    return result if LOWEST_RESULT <= result <= HIGHEST_RESULT else None


def compile_template(template: Template) -> Compiled:
    """Parse a template's steps and join its story to each of its closing questions."""
    steps = parse_steps(template.steps)
    operands = {operand for step in steps for operand in (step.left, step.right)}
    return Compiled(
        name=template.name,
        inputs=tuple((name, low, high - low + 1) for name, (low, high) in template.inputs.items()),
        steps=steps,
        constants={operand: int(operand) for operand in operands if operand.isdigit()},
        questions=tuple(f"{template.story} {ask}" for ask in template.asks),
        answer=re.sub(r"\[(\w+)\]", r"{eq_\1}", template.answer) + f"\n#### {{{steps[-1].result}}}",
        pools=tuple(template.pools.items()),
    )


TRAINING = tuple(compile_template(template) for template in TWO_STEPS + THREE_STEPS + FOUR_STEPS + FIVE_STEPS)
HELD_OUT = tuple(compile_template(template) for template in HELD_OUT_TEMPLATES)


def draw_numbers(template: Compiled, rng: random.Random) -> dict[str, int]:
    """Draw inputs until every step keeps the rules; returns all values by name."""
    uniform = rng.random
    while True:
        values = dict(template.constants)
        for name, low, size in template.inputs:
            values[name] = low + int(uniform() * size)
        for step in template.steps:
            result = calculate(values[step.left], step.op, values[step.right])
            if result is None:
                break
            values[step.result] = result
        else:
            return values


def draw_problem(template: Compiled, rng: random.Random) -> Problem:
    """One problem of a template: numbers, names, nouns and the closing question drawn from `rng`."""
    values = draw_numbers(template, rng)
    fields: dict[str, int | str] = {**values}
    for step in template.steps:
        equation = f"{values[step.left]}{step.op}{values[step.right]}={values[step.result]}"
        fields[f"eq_{step.result}"] = equation
    (name, he), (pal, _) = rng.sample(NAMES, 2)
    fields.update(name=name, pal=pal, he=he, He=he.capitalize(), his="his" if he == "he" else "her")
    for pool, words in template.pools:
        fields[pool] = rng.choice(words)
    question = rng.choice(template.questions)
    return Problem(question.format_map(fields), template.answer.format_map(fields), template.name)


def problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yield `count` problems of a split; the same arguments always give the same problems.

    Within one call only the train split may repeat a prompt. `test_templates` draws from templates that
    no other split uses. Raises UserError for an unknown split, or where a split runs out of new prompts.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return _draw_all(split, count, random.Random(f"{split}-{seed}"))


def _draw_all(split: str, count: int, rng: random.Random) -> Iterator[Problem]:
    templates = HELD_OUT if split == "test_templates" else TRAINING
    seen: set[str] = set()
    for _ in range(count):
        for _ in range(MAX_FRUITLESS_DRAWS):
            problem = draw_problem(rng.choice(templates), rng)
            if problem.prompt not in seen and split in ("test_templates", split_of_sample(problem.prompt)):
                break
        else:
            raise UserError(f"no new prompt in {MAX_FRUITLESS_DRAWS} draws for the split {split!r}; ask for fewer")
        if split != "train":
            seen.add(problem.prompt)
        yield problem


def final_number(text: str) -> int | None:
    """The integer written right after the last `####` of a text, or None where there is none."""
    _, marker, tail = text.rpartition("####")
    found = FINAL_NUMBER.match(tail) if marker else None
    return int(found.group(1).replace(",", "")) if found and len(found.group(1)) < 20 else None


def grade(problem: Problem, text: str) -> bool:
    """Whether a text's final number, the one after its last `####`, is the problem's right answer."""
    given = final_number(text)
    return given is not None and given == final_number(problem.answer)
