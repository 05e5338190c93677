"""Samples the inputs of the code task's functions, and chooses the assertions that test answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .function_family import FunctionFamily

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
# Of the functions that differ from the right one, at most one in MISSED may pass its tests; POOL inputs are tried.
MISSED = 20
POOL = 60
LONGER = ("many", "terms", "line")  # kinds of the grammar's arguments; its families have places up to the fourth
TURNED = ("level", "noon", "abba", "stats", "radar")


@dataclass(frozen=True, slots=True)
class SampledFunction:
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


def write_assertion(sampled: SampledFunction, inputs: tuple[Any, ...]) -> str:
    """Returns the assertion that the right function makes of these inputs."""
    return f"assert {sampled.name}({', '.join(map(repr, inputs))}) == {sampled.function(*inputs)!r}"


def choose_tests(sampled: SampledFunction, prompt: str, rng: random.Random) -> tuple[str, ...]:
    """Returns 5 to 8 assertions other than the example: edges first, then as many different results as possible."""
    known = prompt.splitlines()[-1]
    edges = [write_assertion(sampled, inputs) for inputs in _list_edges(sampled, rng)]
    chosen = [test for test in dict.fromkeys(edges) if test != known][:6]
    found: dict[str, list[str]] = {}
    for turn in range(16):
        test = write_assertion(sampled, sample_inputs(sampled, rng, False, empty=turn == 0))
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


def choose_telling_tests(
    sampled: SampledFunction, prompt: str, others: Sequence[Callable[..., Any]], rng: random.Random
) -> tuple[str, ...]:
    """Returns 5 to 8 assertions other than the example, which as many of the other functions as possible fail.

    The empty list is always one. Returns none if more than one other function in MISSED passes them all.
    """
    pool = [sample_inputs(sampled, rng, False, empty=turn == 0) for turn in range(POOL)]
    tests = {write_assertion(sampled, inputs): inputs for inputs in pool}
    example = prompt.splitlines()[-1]
    failed = {
        test: {place for place, other in enumerate(others) if _differs(other, sampled.function, inputs)}
        for test, inputs in tests.items()
        if test != example
    }
    chosen = [test for test in failed if tests[test] == pool[0]]
    failing = set[int]().union(*(failed[test] for test in chosen))
    while len(chosen) < min(8, len(failed)):
        best = max((test for test in failed if test not in chosen), key=lambda test: len(failed[test] - failing))
        if len(chosen) >= 5 and failed[best] <= failing:
            break
        chosen.append(best)
        failing |= failed[best]
    return tuple(chosen) if len(chosen) >= 5 and (len(others) - len(failing)) * MISSED <= len(others) else ()


def _differs(other: Callable[..., Any], function: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
    try:
        found = other(*inputs)
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        return True
    return bool(found != function(*inputs))


def _list_edges(sampled: SampledFunction, rng: random.Random) -> list[tuple[Any, ...]]:
    """Returns inputs at and next to each sampled constant."""
    kinds = sampled.family.kinds.split()
    edges = []
    steps = (0, 1, -1) * len(kinds)
    for value in (near + step for near in sampled.near for step in steps):
        inputs = list(sample_inputs(sampled, rng, False))
        if len(kinds) > 1 and kinds[0] == "int":
            inputs = [rng.choice((-60, 0, 0, 60))] * 2
        place = rng.randrange(len(kinds))
        inputs[place] = _make_edge(kinds[place], value, inputs[place], rng)
        edges.append(tuple(inputs))
    rng.shuffle(edges)
    return edges


def _make_edge(kind: str, value: int, other: Any, rng: random.Random) -> Any:
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


def sample_inputs(sampled: SampledFunction, rng: random.Random, example: bool, empty: bool = False) -> tuple[Any, ...]:
    """Samples one input: a short, non-empty one for the example, an empty one if requested."""
    size = 0 if empty else rng.randint(2, 3) if example else rng.randint(1, 8)
    kinds = sampled.family.kinds.split()
    size += rng.randint(1, 2) if example and kinds[0] in LONGER else 0
    inputs = [_sample_input(kind, size, sampled, rng) for kind in kinds]
    if kinds == ["dict", "word"] and inputs[0] and rng.random() < 0.6:
        inputs[1] = rng.choice(list(inputs[0]))
    return tuple(inputs)


def is_dull(sampled: SampledFunction, inputs: tuple[Any, ...]) -> bool:
    """Returns whether an example of one of the grammar's families has the result of an empty list or text."""
    if sampled.family.kinds not in LONGER:
        return False
    result = sampled.function(*inputs)
    return not isinstance(result, bool) and bool(result == sampled.function(inputs[0][:0]))


def _sample_input(kind: str, size: int, sampled: SampledFunction, rng: random.Random) -> Any:
    if kind in ("ints", "some", "many"):
        values = [_sample_number(sampled, rng) for _ in range(max(size, kind == "some"))]
        if size > 3 and rng.random() < 0.5:
            values[-1] = values[0]
        return values
    if kind == "words":
        return [_sample_word(sampled, rng) for _ in range(min(size, 4))]
    if kind in ("terms", "line"):
        words = [_sample_word(sampled, rng) for _ in range(size)]
        if size > 3 and rng.random() < 0.5:
            words[-1] = words[0]
        return words if kind == "terms" else " ".join(words)
    if kind == "dict":
        return {rng.choice(WORDS): _sample_number(sampled, rng) for _ in range(min(size, 4))}
    if kind == "pairs":
        return [(_sample_number(sampled, rng), _sample_number(sampled, rng)) for _ in range(min(size, 4))]
    if kind in ("str", "turn"):
        return _sample_text(kind, size, sampled, rng)
    if kind == "word":
        return rng.choice(WORDS)
    if kind == "int":
        return _sample_number(sampled, rng) if size else 0
    if kind == "long":
        return rng.choice((rng.randint(1, 99), rng.randint(100, 9999), *sampled.near)) if size else 0
    return rng.randint(size > 0, 7 if kind == "few" else 14) if size else 0


def _sample_number(sampled: SampledFunction, rng: random.Random) -> int:
    """Samples a number: often a sampled constant, a neighbor or a multiple of it, which reveal wrong answers."""
    if sampled.near and rng.random() < 0.5:
        near = rng.choice(sampled.near)
        return rng.choice((near, near - 1, near + 1, 2 * near, 3 * near))
    return rng.randint(-9, 30)


def _sample_word(sampled: SampledFunction, rng: random.Random) -> str:
    word = rng.choice(WORDS)
    if sampled.letter and rng.random() < 0.6:
        with_letter = [other for other in WORDS if sampled.letter in (other[0], other[-1])]
        return rng.choice(with_letter or (word,))
    return word


def _sample_text(kind: str, size: int, sampled: SampledFunction, rng: random.Random) -> str:
    if not size:
        return ""
    if kind == "turn" and rng.random() < 0.5:
        return rng.choice(TURNED)
    word = _sample_word(sampled, rng)
    if size > 2 and rng.random() < 0.5:
        word = f"{word} {rng.choice(WORDS)}"
    return rng.choice((word, word, word.title())) if not sampled.letter else word
