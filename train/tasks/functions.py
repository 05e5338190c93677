"""Samples problems of the task `code`, each an instruction and an example of a small Python function; grades answers.

The splits and their problems:

* `valid`, `test`: functions of the families that `function_families` lists;
* `train`: these, functions of a grammar's training families (`function_grammar`), and simple ones
  (`function_families_simple`); some prompts are rewritten as people type them (`surface`);
* `test_templates`: functions of families that no other split has;
* `valid_surface`, `test_surface`: `valid` and `test` with one change per prompt of those that `train` has;
* `valid_families`, `test_families`: families of the grammar that no other split has;
* `valid_seen`, `test_seen`: the grammar's training families, but other problems than in `train`.
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
from .argument_names import ARGUMENTS, HELD_OUT_ARGUMENTS, NAMED_LIKE, OTHER_ARGUMENTS, invent_name
from .function_composition import FamilyParts
from .function_families import TRAINING
from .function_families_held_out import HELD_OUT
from .function_families_simple import SIMPLE
from .function_family import FunctionFamily
from .function_inputs import (
    SampledFunction,
    choose_discriminating_tests,
    choose_tests,
    has_trivial_result,
    sample_inputs,
    write_assertion,
)
from .problem import Problem, find_sample_split

SPLITS = ("train", "valid", "test", "test_templates", "valid_surface", "test_surface", *function_grammar.SPLITS)
FAMILY_SHARE = 0.5  # share of the training problems that are of the grammar's families
SIMPLE_SHARE = 0.15  # share of the other training problems that a visitor would try first
ANY_HASH_SPLITS = ("test_templates", "valid_families", "test_families")  # whose families no other split has
TOKEN = re.compile(r"\d| ?[A-Za-z]+|[^\sA-Za-z\d]+|\s+")
WORD = re.compile(r"\w+")
MAX_PROMPT_TOKENS = 70  # matches of TOKEN
# Function names that do not hint at what the function does: so a model has to read the instruction.
PLAIN_NAMES = ("solve", "compute", "task", "helper", "answer", "process")
PLAIN_SHARE = 0.15
# Shares of the training problems whose arguments have invented names, and of those whose function has one.
INVENTED_ARGUMENT_SHARE = 0.5
INVENTED_FUNCTION_SHARE = 0.1


def sample_problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of a split; the same arguments always give the same problems.

    The problems of `train` have no tests and may repeat; those of the other splits have 5 to 8 tests and do not repeat.
    A `_surface` split has the problems of `valid` or `test` of that seed, each with one change, which `group` names.
    Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    plain = split.removesuffix("_surface")
    drafts = sample_rewritable_problems(plain, count, seed)
    return surface.rewrite_split(split, seed, drafts, CHANGES)


def grade(problem: Problem, text: str) -> bool:
    """Returns whether `text` is a program that passes the tests of `problem`; see `grade_many`."""
    return grade_many([problem], [text])[0]


def grade_many(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """Returns for each problem whether its text passes its tests, and the example if one ends its prompt.

    The texts run in a separate process. Raises ValueError for unequal lengths.
    """
    pairs = zip(problems, texts, strict=True)
    return sandbox.run([(text, (*problem.tests, *_find_example(problem.prompt))) for problem, text in pairs])


def _find_example(prompt: str) -> tuple[str, ...]:
    """Returns the assertion on the last line of a prompt; prompts of users' own data may have none."""
    last = prompt.rstrip("\n").rpartition("\n")[2]
    return (last,) if last.startswith("assert ") else ()


def sample_rewritable_problems(split: str, count: int, seed: int) -> Iterator[surface.RewritableProblem]:
    """Yields `count` problems of a split other than a `_surface` split, before any rewriting."""
    rng, seen = random.Random(f"{split}-{seed}"), set[str]()
    several_lines = tuple(family for family in TRAINING if "\n" in family.body)
    families = HELD_OUT if split == "test_templates" else TRAINING + several_lines  # these twice as often
    yielded = 0
    while yielded < count:
        family_parts = None
        if split in function_grammar.SPLITS or (split == "train" and rng.random() < FAMILY_SHARE):
            family_parts, family = function_grammar.sample_family(split, rng)
        elif split == "train" and rng.random() < SIMPLE_SHARE:
            family = rng.choice(SIMPLE)
        else:
            family = rng.choice(families)
        sampled, prompt = _sample_prompt(split, family, rng)
        if not prompt or prompt in seen:
            continue
        tests: tuple[str, ...] = ()
        if split != "train":
            seen.add(prompt)
            tests = (
                choose_tests(sampled, prompt, rng)
                if family_parts is None
                else _choose_discriminating_tests(family_parts, sampled, prompt, rng)
            )
            if not tests:
                continue
        yielded += 1
        problem = Problem(prompt, sampled.answer, sampled.family.group, tests)
        yield surface.RewritableProblem(problem, partial(_rewrite, sampled, problem))


def _sample_prompt(split: str, family: FunctionFamily, rng: random.Random) -> tuple[SampledFunction, str]:
    """Samples a function of the family and a short prompt of the split; the prompt is "" if none is found."""
    for _ in range(8):
        sampled = _sample_function(family, rng, split)
        for attempt in range(12):
            inputs = sample_inputs(sampled, rng, True)
            if attempt < 8 and has_trivial_result(sampled, inputs):
                continue
            prompt = f"{sampled.instruction}\n{write_assertion(sampled, inputs)}"
            of_split = split in ANY_HASH_SPLITS or find_sample_split(prompt) == split.removesuffix("_seen")
            if of_split and len(TOKEN.findall(prompt)) <= MAX_PROMPT_TOKENS:
                return sampled, prompt
    return sampled, ""


def _choose_discriminating_tests(
    family_parts: FamilyParts, sampled: SampledFunction, prompt: str, rng: random.Random
) -> tuple[str, ...]:
    """Returns assertions that functions of similar families fail."""
    constants = {name: sampled.values[name] for name in sampled.family.pools}
    programs: list[str] = []
    for body, values in function_grammar.list_neighbors(family_parts, constants, rng):
        wrong_family = replace(sampled.family, body=body)
        programs.append(_write_answer(wrong_family, f"wrong_{len(programs)}", {**sampled.values, **values}))
    functions = _define_functions("\n\n".join(programs))
    wrong_functions = [functions[f"wrong_{place}"] for place in range(len(programs))]
    return choose_discriminating_tests(sampled, prompt, wrong_functions, rng)


def _define_functions(program: str) -> dict[str, Any]:
    """Returns the functions that a program defines, by name."""
    namespace: dict[str, Any] = {}
    exec(program, namespace)
    return namespace


def _sample_function(family: FunctionFamily, rng: random.Random, split: str) -> SampledFunction:
    kinds = [NAMED_LIKE.get(kind, kind) for kind in family.argument_kinds.split()]
    names = [rng.choice(ARGUMENTS[kind][place]) for place, kind in enumerate(kinds)]
    values: dict[str, Any] = dict(zip("ab", names, strict=False))
    values.update((key, rng.choice(pool)) for key, pool in family.pools.items())
    numbers = tuple(value for value in values.values() if isinstance(value, int))
    name = rng.choice(family.names.split("|")).format(**values)
    if rng.random() < PLAIN_SHARE:
        name = rng.choice(PLAIN_NAMES)
    if split == "train":
        name = _invent_names(family, name, values, rng)
    answer = _write_answer(family, name, values)
    function = _define_functions(answer)[name]
    opening = rng.choice(("Write a function", "Write a Python function"))
    instruction = _format_instruction(family, opening, name, values)
    return SampledFunction(family, values, opening, name, instruction, answer, function, numbers, values.get("x", ""))


def _invent_names(family: FunctionFamily, name: str, values: dict[str, Any], rng: random.Random) -> str:
    """Returns the function's name or an invented one; gives some arguments invented names, in `values`."""
    taken = {*WORD.findall(_write_answer(family, name, values))}
    if rng.random() < INVENTED_ARGUMENT_SHARE:
        for key in (key for key in "ab" if key in values):
            values[key] = invent_name(rng, taken)
            taken.add(values[key])
    return invent_name(rng, taken) if rng.random() < INVENTED_FUNCTION_SHARE else name


def _format_call(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(values[key] for key in 'ab' if key in values)})"


def _format_instruction(family: FunctionFamily, opening: str, name: str, values: Mapping[str, Any]) -> str:
    return f"{opening} {_format_call(name, values)} that {family.text.format(**_fill_values(values))}."


def _write_answer(family: FunctionFamily, name: str, values: Mapping[str, Any]) -> str:
    body = family.body.format(**_fill_values(values)).replace("\n", "\n    ")
    return f"def {_format_call(name, values)}:\n    {body}"


def _fill_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values; in those that are tuples of texts, the fields of other values are filled."""
    return {key: _fill_value(value, values) for key, value in values.items()}


def _fill_value(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(part.format(**values) if isinstance(part, str) and "{" in part else part for part in value)
    return value


CHANGES = ("name", "order", "no_example", *surface.CHANGES)


def _rewrite(
    sampled: SampledFunction, problem: Problem, changes: Collection[str], rng: random.Random, split: str
) -> Problem:
    """Returns the problem after changes. Its tests then include the example, which may no longer end the prompt.

    A prompt without the example could be of several splits, so the example is dropped only in the split that the bare
    instruction is hashed to.
    """
    _, _, example = problem.prompt.partition("\n")
    if "name" in changes:
        sampled = _rename(sampled, rng, split)
    text = surface.rewrite_text(sampled.instruction, changes, rng, surface.PROSE)
    if "no_example" not in changes or find_sample_split(sampled.instruction) != split:
        text = f"{example}\n{text}" if "order" in changes else f"{text}\n{example}"
    prompt = surface.rewrite_text(text, changes, rng, surface.EDGES)
    return replace(problem, prompt=prompt, answer=sampled.answer, tests=(*problem.tests, example))


def _rename(sampled: SampledFunction, rng: random.Random, split: str) -> SampledFunction:
    """Gives the arguments other names, in the answer too; the function keeps its name, which tests call."""
    kinds = [NAMED_LIKE.get(kind, kind) for kind in sampled.family.argument_kinds.split()]
    pool = OTHER_ARGUMENTS if split == "train" else HELD_OUT_ARGUMENTS
    chosen: list[str] = []
    for kind in kinds:
        chosen.append(rng.choice([name for name in pool[kind] if name not in chosen]))
    values = {**sampled.values, **dict(zip("ab", chosen, strict=False))}
    instruction = _format_instruction(sampled.family, sampled.opening, sampled.name, values)
    return replace(sampled, instruction=instruction, answer=_write_answer(sampled.family, sampled.name, values))
