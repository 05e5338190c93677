"""Samples the inputs of the code task's functions, and chooses the assertions that test answers.

Kinds of arguments, as families name them:

* `int`, `natural`, `small_natural` (up to 7), `digits` (a natural number, often of several digits);
* `ints`, `nonempty_ints`, `long_ints` (examples have more items): lists of numbers;
* `str`, `maybe_palindrome` (every other one is), `word`, `long_text` (words with spaces between them): texts;
* `words`, `long_words`: lists of words;
* `dict`: numbers by word; `pairs`: a list of pairs of numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .function_family import FunctionFamily

WORD_LIST = """
apple river stone table green tree lion rain salt north train note star tail area oil ear ice nest rose
line ring seat level noon lantern island glass boss
"""
WORDS = tuple(WORD_LIST.split())
INPUT_POOL_SIZE = 60  # inputs among which `choose_discriminating_tests` chooses
WRONG_PER_PASS = 20  # of the wrong functions, at most one in so many may pass the chosen tests
LONG_KINDS = ("long_ints", "long_words", "long_text")  # of the grammar, whose families have places up to the fourth
PALINDROMES = ("level", "noon", "abba", "stats", "radar")


@dataclass(frozen=True, slots=True)
class SampledFunction:
    """Holds a function of a family, without the inputs of its example and tests.

    Attributes:
        values: the arguments' names `a` and `b`, and the constants, by field of the family's texts.
        opening: how the instruction begins.
        numbers: constants that are numbers; inputs near them show whether an answer is right.
        letter: the constant that is a letter, or ""; inputs often have it.
    """

    family: FunctionFamily
    values: Mapping[str, Any]
    opening: str
    name: str
    instruction: str
    answer: str
    function: Callable[..., Any]
    numbers: tuple[int, ...]
    letter: str


def write_assertion(sampled: SampledFunction, inputs: tuple[Any, ...]) -> str:
    """Returns the assertion that a right answer returns what the function does for these inputs."""
    return f"assert {sampled.name}({', '.join(map(repr, inputs))}) == {sampled.function(*inputs)!r}"


def choose_tests(sampled: SampledFunction, prompt: str, rng: random.Random) -> tuple[str, ...]:
    """Returns 5 to 8 assertions other than the example: edges first, then as many different results as possible."""
    example = prompt.splitlines()[-1]
    edges = [write_assertion(sampled, inputs) for inputs in _list_edges(sampled, rng)]
    chosen = [test for test in dict.fromkeys(edges) if test != example][:6]
    by_result: dict[str, list[str]] = {}
    for turn in range(16):
        test = write_assertion(sampled, sample_inputs(sampled, rng, False, empty=turn == 0))
        if test != example and test not in chosen:
            tests = by_result.setdefault(test.rsplit(" == ", 1)[1], [])
            if test not in tests:
                tests.append(test)
    while by_result and len(chosen) < 8:
        for result in list(by_result):
            chosen.append(by_result[result].pop(0))
            if not by_result[result]:
                del by_result[result]
    return tuple(chosen[:8]) if len(chosen) >= 5 else ()


def choose_discriminating_tests(
    sampled: SampledFunction, prompt: str, wrong_functions: Sequence[Callable[..., Any]], rng: random.Random
) -> tuple[str, ...]:
    """Returns 5 to 8 assertions other than the example that as many of the wrong functions as possible fail.

    One of them is of the empty input. Returns none if more than one in WRONG_PER_PASS wrong functions passes all.
    """
    pool = [sample_inputs(sampled, rng, False, empty=turn == 0) for turn in range(INPUT_POOL_SIZE)]
    tests = {write_assertion(sampled, inputs): inputs for inputs in pool}
    example = prompt.splitlines()[-1]
    failing_by_test = {
        test: {place for place, wrong in enumerate(wrong_functions) if _differs(wrong, sampled.function, inputs)}
        for test, inputs in tests.items()
        if test != example
    }
    chosen = [test for test in failing_by_test if tests[test] == pool[0]]
    failing = set[int]().union(*(failing_by_test[test] for test in chosen))
    while len(chosen) < min(8, len(failing_by_test)):
        others = [test for test in failing_by_test if test not in chosen]
        best = max(others, key=lambda test: len(failing_by_test[test] - failing))
        if len(chosen) >= 5 and failing_by_test[best] <= failing:
            break
        chosen.append(best)
        failing |= failing_by_test[best]
    passing_count = len(wrong_functions) - len(failing)
    return tuple(chosen) if len(chosen) >= 5 and passing_count * WRONG_PER_PASS <= len(wrong_functions) else ()


def _differs(wrong: Callable[..., Any], function: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
    try:
        result = wrong(*inputs)
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        return True
    return bool(result != function(*inputs))


def _list_edges(sampled: SampledFunction, rng: random.Random) -> list[tuple[Any, ...]]:
    """Returns inputs at and next to each constant."""
    kinds = sampled.family.argument_kinds.split()
    edges = []
    steps = (0, 1, -1) * len(kinds)
    for value in (number + step for number in sampled.numbers for step in steps):
        inputs = list(sample_inputs(sampled, rng, False))
        if len(kinds) > 1 and kinds[0] == "int":
            inputs = [rng.choice((-60, 0, 0, 60))] * 2
        place = rng.randrange(len(kinds))
        inputs[place] = _make_edge(kinds[place], value, inputs[place], rng)
        edges.append(tuple(inputs))
    rng.shuffle(edges)
    return edges


def _make_edge(kind: str, value: int, default: Any, rng: random.Random) -> Any:
    """Returns an argument with this number, or with this length; `default` for other kinds."""
    if kind in ("ints", "nonempty_ints"):
        # Slices and steps show their constant in a list that is a little longer than it.
        return [value, value] if value > 7 or rng.random() < 0.5 else [*range(30, 32 + value), value]
    if kind in ("str", "words"):
        text = "lantern island"[: max(value, 1)]
        return text if kind == "str" else [text]
    if kind == "dict":
        return {"ear": value}
    if kind == "pairs":
        return [(value, 60), (-60, value), (60, value), (value, -60)]
    return value if kind == "int" or (kind in ("natural", "digits") and value >= 0) else default


def sample_inputs(sampled: SampledFunction, rng: random.Random, example: bool, empty: bool = False) -> tuple[Any, ...]:
    """Samples the arguments of one call: short, non-empty ones for an example, empty ones if requested."""
    size = 0 if empty else rng.randint(2, 3) if example else rng.randint(1, 8)
    kinds = sampled.family.argument_kinds.split()
    size += rng.randint(1, 2) if example and kinds[0] in LONG_KINDS else 0
    inputs = [_sample_input(kind, size, sampled, rng) for kind in kinds]
    if kinds == ["dict", "word"] and inputs[0] and rng.random() < 0.6:
        inputs[1] = rng.choice(list(inputs[0]))
    return tuple(inputs)


def has_trivial_result(sampled: SampledFunction, inputs: tuple[Any, ...]) -> bool:
    """Returns whether a function of LONG_KINDS returns the same for these inputs and for an empty list or text."""
    if sampled.family.argument_kinds not in LONG_KINDS:
        return False
    result = sampled.function(*inputs)
    return not isinstance(result, bool) and bool(result == sampled.function(inputs[0][:0]))


def _sample_input(kind: str, size: int, sampled: SampledFunction, rng: random.Random) -> Any:
    if kind in ("ints", "nonempty_ints", "long_ints"):
        values = [_sample_number(sampled, rng) for _ in range(max(size, kind == "nonempty_ints"))]
        if size > 3 and rng.random() < 0.5:
            values[-1] = values[0]
        return values
    if kind == "words":
        return [_sample_word(sampled, rng) for _ in range(min(size, 4))]
    if kind in ("long_words", "long_text"):
        words = [_sample_word(sampled, rng) for _ in range(size)]
        if size > 3 and rng.random() < 0.5:
            words[-1] = words[0]
        return words if kind == "long_words" else " ".join(words)
    if kind == "dict":
        return {rng.choice(WORDS): _sample_number(sampled, rng) for _ in range(min(size, 4))}
    if kind == "pairs":
        return [(_sample_number(sampled, rng), _sample_number(sampled, rng)) for _ in range(min(size, 4))]
    if kind in ("str", "maybe_palindrome"):
        return _sample_text(kind, size, sampled, rng)
    if kind == "word":
        return rng.choice(WORDS)
    if kind == "int":
        return _sample_number(sampled, rng) if size else 0
    if kind == "digits":
        return rng.choice((rng.randint(1, 99), rng.randint(100, 9999), *sampled.numbers)) if size else 0
    return rng.randint(size > 0, 7 if kind == "small_natural" else 14) if size else 0


def _sample_number(sampled: SampledFunction, rng: random.Random) -> int:
    """Samples a number: often a constant, a number next to it or a multiple, with which wrong answers fail."""
    if sampled.numbers and rng.random() < 0.5:
        number = rng.choice(sampled.numbers)
        return rng.choice((number, number - 1, number + 1, 2 * number, 3 * number))
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
    if kind == "maybe_palindrome" and rng.random() < 0.5:
        return rng.choice(PALINDROMES)
    word = _sample_word(sampled, rng)
    if size > 2 and rng.random() < 0.5:
        word = f"{word} {rng.choice(WORDS)}"
    return rng.choice((word, word, word.title())) if not sampled.letter else word
