"""Generates problems by a seed, each a small Python function to write by instruction and example; grades answers.

`train` also has prompts written as people type them; `valid_surface` and `test_surface` are `valid` and `test` with one
such change per prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from runtime.errors import UserError

from . import sandbox, surface
from .argument_names import ARGUMENTS, HELD_OUT_ARGUMENTS, KINDS, OTHER_ARGUMENTS
from .function_families import FunctionFamily
from .function_families_more import HELD_OUT, TRAINING
from .problem import Problem, split_of_sample

SPLITS = ("train", "valid", "test", "test_templates", "valid_surface", "test_surface")
TOKEN = re.compile(r"\d| ?[A-Za-z]+|[^\sA-Za-z\d]+|\s+")
PROMPT_TOKENS = 70
# A name without a hint at the task, sampled now and then, makes the model read the sentence.
PLAIN_NAMES = ("solve", "compute", "task", "helper", "answer", "process")
PLAIN_SHARE = 0.15
WORDS = tuple(
    [
        "apple",
        "river",
        "stone",
        "table",
        "green",
        "tree",
        "lion",
        "rain",
        "salt",
        "north",
        "train",
        "note",
        "star",
        "tail",
        "area",
        "oil",
        "ear",
        "ice",
        "nest",
        "rose",
        "line",
        "ring",
        "seat",
        "level",
        "noon",
        "lantern",
        "island",
        "glass",
        "boss",
    ]
)
TURNED = ("level", "noon", "abba", "stats", "radar")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A family with everything sampled but the inputs; good inputs are close to `near` and `letter`.

    `values` are the names of its arguments, and the values that fill its texts.
    """

    family: FunctionFamily
    values: Mapping[str, Any]
    opening: str
    name: str
    instruction: str
    answer: str
    function: Callable[..., Any]
    near: tuple[int, ...]
    letter: str


def problems(split: str, count: int, seed: int) -> Iterator[Problem]:
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
    return sandbox.run([(text, (*problem.tests, *_example(problem.prompt))) for problem, text in pairs])


def _example(prompt: str) -> tuple[str, ...]:
    """Returns the assertion on the last line of a prompt; prompts of users' own data may have none."""
    last = prompt.rstrip("\n").rpartition("\n")[2]
    return (last,) if last.startswith("assert ") else ()


def _generate(split: str, count: int, rng: random.Random) -> Iterator[surface.Draft]:
    families = HELD_OUT if split == "test_templates" else TRAINING + tuple(f for f in TRAINING if "\n" in f.body)
    seen: set[str] = set()
    made = 0
    while made < count:
        drawn, prompt = _find(split, rng.choice(families), rng)
        if not prompt or prompt in seen:
            continue
        tests: tuple[str, ...] = ()
        if split != "train":
            seen.add(prompt)
            tests = _tests(drawn, prompt, rng)
            if not tests:
                continue
        made += 1
        problem = Problem(prompt, drawn.answer, drawn.family.group, tests)
        yield surface.Draft(problem, partial(_rewrite, drawn, problem))


def _find(split: str, family: FunctionFamily, rng: random.Random) -> tuple[Drawn, str]:
    """Returns a sample of the family and a prompt that belongs to the split, or an empty prompt."""
    for _ in range(8):
        drawn = _draw(family, rng)
        for _ in range(12):
            prompt = f"{drawn.instruction}\n{_assertion(drawn, _inputs(drawn, rng, True))}"
            if split in ("test_templates", split_of_sample(prompt)) and len(TOKEN.findall(prompt)) <= PROMPT_TOKENS:
                return drawn, prompt
    return drawn, ""


def _draw(family: FunctionFamily, rng: random.Random) -> Drawn:
    kinds = [KINDS.get(kind, kind) for kind in family.kinds.split()]
    names = [rng.choice(ARGUMENTS[kind][place]) for place, kind in enumerate(kinds)]
    values: dict[str, Any] = dict(zip("ab", names, strict=False))
    values.update((key, rng.choice(pool)) for key, pool in family.draws.items())
    near = tuple(value for value in values.values() if isinstance(value, int))
    name = rng.choice(family.names.split("|")).format(**values)
    if rng.random() < PLAIN_SHARE:
        name = rng.choice(PLAIN_NAMES)
    answer = _answer(family, name, values)
    space: dict[str, Any] = {}
    exec(answer, space)
    opening = rng.choice(("Write a function", "Write a Python function"))
    instruction = _instruction(family, opening, name, values)
    return Drawn(family, values, opening, name, instruction, answer, space[name], near, values.get("x", ""))


def _head(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(values[key] for key in 'ab' if key in values)})"


def _instruction(family: FunctionFamily, opening: str, name: str, values: Mapping[str, Any]) -> str:
    return f"{opening} {_head(name, values)} that {family.text.format(**_filled(values))}."


def _answer(family: FunctionFamily, name: str, values: Mapping[str, Any]) -> str:
    body = family.body.format(**_filled(values)).replace("\n", "\n    ")
    return f"def {_head(name, values)}:\n    {body}"


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values, with arguments and constants filled into those that mention any."""
    return {key: _fill(value, values) for key, value in values.items()}


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(part.format(**values) if isinstance(part, str) and "{" in part else part for part in value)
    return value


CHANGES = ("name", "order", "no_example", *surface.CHANGES)


def _rewrite(drawn: Drawn, problem: Problem, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem with changes. Its tests now include the example, which may no longer end the prompt.

    The example is dropped only in the split of the bare instruction, which problems of several splits can have.
    """
    _, _, example = problem.prompt.partition("\n")
    if "name" in changes:
        drawn = _rename(drawn, rng, split)
    text = surface.rewrite_text(drawn.instruction, changes, rng, surface.PROSE)
    if "no_example" not in changes or split_of_sample(drawn.instruction) != split:
        text = f"{example}\n{text}" if "order" in changes else f"{text}\n{example}"
    prompt = surface.rewrite_text(text, changes, rng, surface.EDGES)
    return replace(problem, prompt=prompt, answer=drawn.answer, tests=(*problem.tests, example))


def _rename(drawn: Drawn, rng: random.Random, split: str) -> Drawn:
    """Gives the arguments other names, in the answer too; the function keeps its own, which tests call."""
    kinds = [KINDS.get(kind, kind) for kind in drawn.family.kinds.split()]
    pool = OTHER_ARGUMENTS if split == "train" else HELD_OUT_ARGUMENTS
    chosen: list[str] = []
    for kind in kinds:
        chosen.append(rng.choice([name for name in pool[kind] if name not in chosen]))
    values = {**drawn.values, **dict(zip("ab", chosen, strict=False))}
    instruction = _instruction(drawn.family, drawn.opening, drawn.name, values)
    return replace(drawn, instruction=instruction, answer=_answer(drawn.family, drawn.name, values))


def _assertion(drawn: Drawn, inputs: tuple[Any, ...]) -> str:
    return f"assert {drawn.name}({', '.join(map(repr, inputs))}) == {drawn.function(*inputs)!r}"


def _tests(drawn: Drawn, prompt: str, rng: random.Random) -> tuple[str, ...]:
    """Returns 5 to 8 assertions other than the example: edges first, then as many different results as possible."""
    known = prompt.splitlines()[-1]
    edges = [_assertion(drawn, inputs) for inputs in _edges(drawn, rng)]
    chosen = [test for test in dict.fromkeys(edges) if test != known][:6]
    found: dict[str, list[str]] = {}
    for turn in range(16):
        test = _assertion(drawn, _inputs(drawn, rng, False, empty=turn == 0))
        if test != known and test not in chosen:
            tests = found.setdefault(test.rsplit(" == ", 1)[1], [])
            if test not in tests:
                tests.append(test)
    while found and len(chosen) < 8:
        for result in list(found):
            chosen.append(found[result].pop(0))
            if not found[result]:
                del found[result]
    return tuple(chosen[:8]) if len(chosen) >= 5 else ()


def _edges(drawn: Drawn, rng: random.Random) -> list[tuple[Any, ...]]:
    """Returns inputs at and next to each sampled constant."""
    kinds = drawn.family.kinds.split()
    edges = []
    steps = (0, 1, -1) * len(kinds)
    for value in (near + step for near in drawn.near for step in steps):
        inputs = list(_inputs(drawn, rng, False))
        if len(kinds) > 1 and kinds[0] == "int":
            inputs = [rng.choice((-60, 0, 0, 60))] * 2
        place = rng.randrange(len(kinds))
        inputs[place] = _edge(kinds[place], value, inputs[place], rng)
        edges.append(tuple(inputs))
    rng.shuffle(edges)
    return edges


def _edge(kind: str, value: int, other: Any, rng: random.Random) -> Any:
    if kind in ("ints", "some"):
        # Slices and steps show their constant in a list that is a little longer than it.
        return [value, value] if value > 7 or rng.random() < 0.5 else [*range(30, 32 + value), value]
    if kind in ("str", "words"):
        text = "lantern island"[: max(value, 1)]
        return text if kind == "str" else [text]
    if kind == "dict":
        return {"ear": value}
    if kind == "pairs":
        return [(value, 60), (-60, value), (60, value), (value, -60)]
    return value if kind == "int" or (kind in ("nat", "long") and value >= 0) else other


def _inputs(drawn: Drawn, rng: random.Random, example: bool, empty: bool = False) -> tuple[Any, ...]:
    """Samples one input: a short, non-empty one for the example, an empty one if requested."""
    size = 0 if empty else rng.randint(2, 3) if example else rng.randint(1, 8)
    kinds = drawn.family.kinds.split()
    inputs = [_input(kind, size, drawn, rng) for kind in kinds]
    if kinds == ["dict", "word"] and inputs[0] and rng.random() < 0.6:
        inputs[1] = rng.choice(list(inputs[0]))
    return tuple(inputs)


def _input(kind: str, size: int, drawn: Drawn, rng: random.Random) -> Any:
    if kind in ("ints", "some"):
        values = [_number(drawn, rng) for _ in range(max(size, kind == "some"))]
        if size > 3 and rng.random() < 0.5:
            values[-1] = values[0]
        return values
    if kind == "words":
        return [_word(drawn, rng) for _ in range(min(size, 4))]
    if kind == "dict":
        return {rng.choice(WORDS): _number(drawn, rng) for _ in range(min(size, 4))}
    if kind == "pairs":
        return [(_number(drawn, rng), _number(drawn, rng)) for _ in range(min(size, 4))]
    if kind in ("str", "turn"):
        return _text(kind, size, drawn, rng)
    if kind == "word":
        return rng.choice(WORDS)
    if kind == "int":
        return _number(drawn, rng) if size else 0
    if kind == "long":
        return rng.choice((rng.randint(1, 99), rng.randint(100, 9999), *drawn.near)) if size else 0
    return rng.randint(size > 0, 7 if kind == "few" else 14) if size else 0


def _number(drawn: Drawn, rng: random.Random) -> int:
    """Samples a number: often a sampled constant, a neighbor or a multiple of it, which reveal wrong answers."""
    if drawn.near and rng.random() < 0.5:
        near = rng.choice(drawn.near)
        return rng.choice((near, near - 1, near + 1, 2 * near, 3 * near))
    return rng.randint(-9, 30)


def _word(drawn: Drawn, rng: random.Random) -> str:
    word = rng.choice(WORDS)
    if drawn.letter and rng.random() < 0.6:
        with_letter = [other for other in WORDS if drawn.letter in (other[0], other[-1])]
        return rng.choice(with_letter or (word,))
    return word


def _text(kind: str, size: int, drawn: Drawn, rng: random.Random) -> str:
    if not size:
        return ""
    if kind == "turn" and rng.random() < 0.5:
        return rng.choice(TURNED)
    word = _word(drawn, rng)
    if size > 2 and rng.random() < 0.5:
        word = f"{word} {rng.choice(WORDS)}"
    return rng.choice((word, word, word.title())) if not drawn.letter else word
