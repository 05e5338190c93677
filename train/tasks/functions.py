"""Generates problems by a seed, each a small Python function to write by instruction and example; grades answers.

`train` also has prompts written as people type them; `valid_surface` and `test_surface` are `valid` and `test` with one
such change per prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from runtime.errors import UserError

from . import function_grammar, sandbox, surface
from .argument_names import ARGUMENTS, HELD_OUT_ARGUMENTS, KINDS, OTHER_ARGUMENTS, invent_name
from .function_composition import Family
from .function_families import TRAINING
from .function_families_held_out import HELD_OUT
from .function_families_simple import SIMPLE
from .function_family import FunctionFamily
from .function_inputs import (
    SampledFunction,
    choose_telling_tests,
    choose_tests,
    is_dull,
    sample_inputs,
    write_assertion,
)
from .problem import Problem, split_of_sample

SPLITS = ("train", "valid", "test", "test_templates", "valid_surface", "test_surface", *function_grammar.SPLITS)
FAMILY_SHARE = 0.5  # share of the problems of `train` that are of the grammar's families
SIMPLE_SHARE = 0.15  # share of its other problems that a visitor would try first
ANY_HASH = ("test_templates", "valid_families", "test_families")  # splits that are apart by their families
TOKEN = re.compile(r"\d| ?[A-Za-z]+|[^\sA-Za-z\d]+|\s+")
WORD = re.compile(r"\w+")
PROMPT_TOKENS = 70
# A name without a hint at the task, sampled now and then, makes the model read the sentence.
PLAIN_NAMES = ("solve", "compute", "task", "helper", "answer", "process")
PLAIN_SHARE = 0.15
# Shares of the training problems whose arguments have invented names, and of those whose function has one.
INVENTED_ARGUMENTS = 0.5
INVENTED_FUNCTION = 0.1


def sample_problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of one of SPLITS, the same ones for the same arguments.

    The problems of `train` have no tests and may repeat; those of the other splits have 5 to 8 tests and do not
    repeat. A `_surface` split has the problems of `valid` or `test` of that seed, with one change each, which `group`
    names.
    Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    plain = split.removesuffix("_surface")
    drafts = _generate(plain, count, random.Random(f"{plain}-{seed}"))
    return surface.rewrite_for(split, seed, drafts, CHANGES)


def grade(problem: Problem, text: str) -> bool:
    """Returns whether `text` is a program that passes the tests of `problem`; see `grade_many`."""
    return grade_many([problem], [text])[0]


def grade_many(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """Returns for each problem whether its text passes its tests and any example that ends its prompt.

    The texts run in a separate process. Raises ValueError for unequal lengths.
    """
    pairs = zip(problems, texts, strict=True)
    return sandbox.run([(text, (*problem.tests, *_find_example(problem.prompt))) for problem, text in pairs])


def _find_example(prompt: str) -> tuple[str, ...]:
    """Returns the assertion on the last line of a prompt; prompts of users' own data may have none."""
    last = prompt.rstrip("\n").rpartition("\n")[2]
    return (last,) if last.startswith("assert ") else ()


def _generate(split: str, count: int, rng: random.Random) -> Iterator[surface.RewritableProblem]:
    families = HELD_OUT if split == "test_templates" else TRAINING + tuple(f for f in TRAINING if "\n" in f.body)
    seen: set[str] = set()
    made = 0
    while made < count:
        composed = None
        if split in function_grammar.SPLITS or (split == "train" and rng.random() < FAMILY_SHARE):
            composed, family = function_grammar.sample_family(split, rng)
        elif split == "train" and rng.random() < SIMPLE_SHARE:
            family = rng.choice(SIMPLE)
        else:
            family = rng.choice(families)
        sampled, prompt = _find(split, family, rng)
        if not prompt or prompt in seen:
            continue
        tests: tuple[str, ...] = ()
        if split != "train":
            seen.add(prompt)
            tests = (
                choose_tests(sampled, prompt, rng)
                if composed is None
                else _choose_telling(composed, sampled, prompt, rng)
            )
            if not tests:
                continue
        made += 1
        problem = Problem(prompt, sampled.answer, sampled.family.group, tests)
        yield surface.RewritableProblem(problem, partial(_rewrite, sampled, problem))


def _find(split: str, family: FunctionFamily, rng: random.Random) -> tuple[SampledFunction, str]:
    """Returns a sample of the family and a prompt that belongs to the split, or an empty prompt."""
    for _ in range(8):
        sampled = _sample_function(family, rng, split)
        for attempt in range(12):
            inputs = sample_inputs(sampled, rng, True)
            if attempt < 8 and is_dull(sampled, inputs):
                continue
            prompt = f"{sampled.instruction}\n{write_assertion(sampled, inputs)}"
            fits = split in ANY_HASH or split_of_sample(prompt) == split.removesuffix("_seen")
            if fits and len(TOKEN.findall(prompt)) <= PROMPT_TOKENS:
                return sampled, prompt
    return sampled, ""


def _choose_telling(family: Family, sampled: SampledFunction, prompt: str, rng: random.Random) -> tuple[str, ...]:
    """Returns assertions that tell the right function from those of neighboring families."""
    constants = {name: sampled.values[name] for name in sampled.family.draws}
    programs: list[str] = []
    for body, values in function_grammar.list_neighbors(family, constants, rng):
        programs.append(
            _answer(replace(sampled.family, body=body), f"other_{len(programs)}", {**sampled.values, **values})
        )
    space = _run("\n\n".join(programs))
    others = [space[f"other_{place}"] for place in range(len(programs))]
    return choose_telling_tests(sampled, prompt, others, rng)


def _run(program: str) -> dict[str, Any]:
    """Returns the functions that a program defines."""
    space: dict[str, Any] = {}
    exec(program, space)
    return space


def _sample_function(family: FunctionFamily, rng: random.Random, split: str) -> SampledFunction:
    kinds = [KINDS.get(kind, kind) for kind in family.kinds.split()]
    names = [rng.choice(ARGUMENTS[kind][place]) for place, kind in enumerate(kinds)]
    values: dict[str, Any] = dict(zip("ab", names, strict=False))
    values.update((key, rng.choice(pool)) for key, pool in family.draws.items())
    near = tuple(value for value in values.values() if isinstance(value, int))
    name = rng.choice(family.names.split("|")).format(**values)
    if rng.random() < PLAIN_SHARE:
        name = rng.choice(PLAIN_NAMES)
    if split == "train":
        name = _invent_names(family, name, values, rng)
    answer = _answer(family, name, values)
    function = _run(answer)[name]
    opening = rng.choice(("Write a function", "Write a Python function"))
    instruction = _format_instruction(family, opening, name, values)
    return SampledFunction(family, values, opening, name, instruction, answer, function, near, values.get("x", ""))


def _invent_names(family: FunctionFamily, name: str, values: dict[str, Any], rng: random.Random) -> str:
    """Gives some functions an invented name, which is returned, and some arguments, in `values`."""
    taken = {*WORD.findall(_answer(family, name, values))}
    if rng.random() < INVENTED_ARGUMENTS:
        for key in (key for key in "ab" if key in values):
            values[key] = invent_name(rng, taken)
            taken.add(values[key])
    return invent_name(rng, taken) if rng.random() < INVENTED_FUNCTION else name


def _format_head(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(values[key] for key in 'ab' if key in values)})"


def _format_instruction(family: FunctionFamily, opening: str, name: str, values: Mapping[str, Any]) -> str:
    return f"{opening} {_format_head(name, values)} that {family.text.format(**_fill_all(values))}."


def _answer(family: FunctionFamily, name: str, values: Mapping[str, Any]) -> str:
    body = family.body.format(**_fill_all(values)).replace("\n", "\n    ")
    return f"def {_format_head(name, values)}:\n    {body}"


def _fill_all(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values, with arguments and constants filled into those that mention any."""
    return {key: _fill(value, values) for key, value in values.items()}


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(part.format(**values) if isinstance(part, str) and "{" in part else part for part in value)
    return value


CHANGES = ("name", "order", "no_example", *surface.CHANGES)


def _rewrite(
    sampled: SampledFunction, problem: Problem, changes: Collection[str], rng: random.Random, split: str
) -> Problem:
    """Returns the problem with changes. Its tests now include the example, which may no longer end the prompt.

    The example is dropped only in the split of the bare instruction, which problems of several splits can have.
    """
    _, _, example = problem.prompt.partition("\n")
    if "name" in changes:
        sampled = _rename(sampled, rng, split)
    text = surface.rewrite_text(sampled.instruction, changes, rng, surface.PROSE)
    if "no_example" not in changes or split_of_sample(sampled.instruction) != split:
        text = f"{example}\n{text}" if "order" in changes else f"{text}\n{example}"
    prompt = surface.rewrite_text(text, changes, rng, surface.EDGES)
    return replace(problem, prompt=prompt, answer=sampled.answer, tests=(*problem.tests, example))


def _rename(sampled: SampledFunction, rng: random.Random, split: str) -> SampledFunction:
    """Gives the arguments other names, in the answer too; the function keeps its own, which tests call."""
    kinds = [KINDS.get(kind, kind) for kind in sampled.family.kinds.split()]
    pool = OTHER_ARGUMENTS if split == "train" else HELD_OUT_ARGUMENTS
    chosen: list[str] = []
    for kind in kinds:
        chosen.append(rng.choice([name for name in pool[kind] if name not in chosen]))
    values = {**sampled.values, **dict(zip("ab", chosen, strict=False))}
    instruction = _format_instruction(sampled.family, sampled.opening, sampled.name, values)
    return replace(sampled, instruction=instruction, answer=_answer(sampled.family, sampled.name, values))
