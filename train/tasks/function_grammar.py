"""Composes function families of the code task from parts: a place, conditions, a change, a result.

A family is a combination of parts without their constants. The families of the splits `valid_families` and
`test_families` are diagonals of the grid of all parts (`find_family_split`). Training families have each part, and each
two parts that can be combined, but not the combinations of those two splits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from . import function_parts as parts
from .function_composition import (
    FamilyParts,
    compose,
    find_change,
    find_value_kind,
    list_conditions,
    list_results,
    write_body,
    write_condition,
    write_value,
)
from .function_family import SEPARATORS, FunctionFamily
from .function_parts import CHECKS, PLACES, RANGES

SPLITS = ("valid_families", "test_families", "valid_seen", "test_seen")
FOLDS = 8  # diagonals of the grid; one is test, one is valid
MIN_PARTS = 3  # of a held-out family; smaller families are in training, where templates are like them
INPUT_NUMBERS = range(-9, 31)  # that inputs have, and numbers near a constant
MAX_RESULT = 99  # the largest constant that results are compared with
ATTEMPTS = 40  # at constants with which each part of a family matters, and at families of a shape
# Names of the constants of the part in each slot.
CONSTANT_NAMES = {
    "place": ("p",), "condition": ("n", "x"), "second_condition": ("m",), "change": ("t", "u", "y"),
    "result_condition": ("c", "o"), "result": ("d", "s"),
}  # fmt: skip
# Seeds the search of `_is_possible`, which decides what families there are: another text would change the problems.
POSSIBLE_SEED = "Family(source='numbers', place='', kept={!r}, also={!r}, change={!r}, after={!r}, result='list')"

Shape = tuple[str, ...]

# Relative frequencies of the slots that a family fills, besides its result.
SHAPES: Mapping[Shape, int] = {
    ("place",): 1,
    ("condition",): 2,
    ("change",): 2,
    ("result_condition",): 1,
    ("place", "condition"): 4,
    ("condition", "second_condition"): 4,
    ("condition", "change"): 5,
    ("place", "change"): 4,
    ("change", "result_condition"): 5,
    ("place", "result_condition"): 1,
    ("condition", "result_condition"): 1,
    ("place", "condition", "change"): 6,
    ("condition", "second_condition", "change"): 4,
    ("place", "condition", "result_condition"): 1,
    ("condition", "change", "result_condition"): 1,
    ("place", "change", "result_condition"): 1,
}
JOINED_KINDS = ("adjective", "bound", "divisor")  # order of two conditions on an item, by kind of condition
SOURCES = {"numbers": 3, "words": 1, "text": 1}  # relative frequencies of the sources


def _has_sound_selection(family: FamilyParts) -> bool:
    """Returns whether all parts but the result fit together, and each of them matters."""
    if family.result_condition and find_value_kind(family) == "words":
        return False
    if family.second_condition and not _can_join(family):
        return False
    if family.condition == family.result_condition == "negative":
        return False  # both matter with only one change, so no other family could have both
    if family.source != "numbers":
        never_matters = (family.change, family.result_condition) == ("lengths", "positive")
        return family.result_condition != "negative" and not never_matters
    return _is_possible(family.condition, family.second_condition, family.change, family.result_condition)


def _has_sound_result(family: FamilyParts) -> bool:
    """Returns whether the result fits the other parts, so that each of them matters."""
    if family.result in CHECKS:
        return bool(family.result_condition)
    if family.result_condition and (family.place or family.condition or not family.change):
        return False  # without a change it is a condition on the items; with more parts it takes too many words
    if family.result == "count":
        return bool(family.result_condition if family.change else family.condition)
    if family.result in ("find_first", "find_last"):
        return bool(family.condition or family.result_condition)
    if family.result == "count_distinct":
        change = find_change(family)
        return change is None or change.merges_values
    return family.result not in ("longest", "shortest") or family.change not in ("initials", "finals", "starts")


def _can_join(family: FamilyParts) -> bool:
    """Returns whether English joins the two conditions: as two adjectives, a range, or in JOINED_KINDS' order."""
    conditions = list_conditions(family)
    first_kind, second_kind = conditions[family.condition].kind, conditions[family.second_condition].kind
    if first_kind == second_kind == "adjective":
        return family.condition in ("positive", "negative") and family.second_condition in ("even", "odd")
    if (family.condition, family.second_condition) in RANGES:
        return True
    if not {first_kind, second_kind} <= {*JOINED_KINDS}:
        return False
    return JOINED_KINDS.index(first_kind) < JOINED_KINDS.index(second_kind)


@cache
def _is_possible(condition: str, second_condition: str, change: str, result_condition: str) -> bool:
    """Returns whether constants are found with which each part matters; for "the odd even numbers" there are none."""
    family = FamilyParts("numbers", "", condition, second_condition, change, result_condition)
    seed = POSSIBLE_SEED.format(condition, second_condition, change, result_condition)
    return sample_constants(family, random.Random(seed)) is not None


def is_in_test_templates(family: FamilyParts) -> bool:
    """Returns whether the split `test_templates` has the family, worded differently."""
    source, place, condition, second_condition, change, result_condition, result = family
    if second_condition or (place and (condition or change)) or (result_condition and (condition or place or change)):
        return False
    is_bound = condition in ("above", "below", "from", "upto")
    return (
        (condition in ("even", "odd") and change in ("squares", "cubes") and result == "sum")
        or (condition in ("multiples", "no_multiples") and not change and result == "count")
        or (is_bound and not change and result == "product")
        or (is_bound and change == "times" and result == "list")
        or (source != "numbers" and condition in ("starting", "ending") and result == "count")
        or (source == "numbers" and place == "first" and result == "sum")
        or result_condition in ("multiples", "no_multiples")
    )


def find_family_split(family: FamilyParts) -> str:
    """Returns the split of a family, train, valid or test, by its place in the grid of parts."""
    filled = [part for part in family[1:-1] if part]
    if len(filled) + (family.result != "list") < MIN_PARTS:
        return "train"
    axes = _list_axes(family.source, find_value_kind(family))
    diagonal = sum(axis[part] for axis, part in zip(axes, family, strict=True))
    return {0: "test", 1: "valid"}.get(diagonal % FOLDS, "train")


def list_slots(family: FamilyParts) -> Mapping[str, Sequence[str]]:
    """Returns the parts that each slot but the result can have in families of the same source."""
    numbers, conditions = family.source == "numbers", [*list_conditions(family)]
    changes = parts.NUMBER_CHANGES if numbers else parts.WORD_CHANGES
    return {
        "place": [*PLACES],
        "condition": conditions,
        "second_condition": conditions,
        "change": [*changes],
        "result_condition": [*parts.NUMBER_CONDITIONS],
    }


@cache
def _list_axes(source: str, value_kind: str) -> tuple[dict[str, int], ...]:
    """Returns the places of the parts on each axis of the grid. An empty slot is at 0, as is the first part."""
    results = parts.NUMBER_RESULTS if value_kind == "numbers" else parts.WORD_RESULTS
    axes = ([*SOURCES], *list_slots(FamilyParts(source)).values(), [*results])
    return tuple({"": 0, **{part: place for place, part in enumerate(axis)}} for axis in axes)


def is_family(family: FamilyParts) -> bool:
    """Returns whether parts are a family of the grammar: they fit together, and each of them matters."""
    if family.result not in list_results(family) or is_in_test_templates(family):
        return False
    return _has_sound_result(family) and _has_sound_selection(family)


def sample_family(split: str, rng: random.Random) -> tuple[FamilyParts, FunctionFamily]:
    """Samples a family of `train` or of one of SPLITS; returns its parts, and the family with constants."""
    family_split = split.removesuffix("_families") if split.endswith("_families") else "train"
    while True:
        source = rng.choices([*SOURCES], [*SOURCES.values()])[0]
        shape = rng.choices([*SHAPES], [*SHAPES.values()])[0]
        for _ in range(ATTEMPTS):
            family = _sample_parts(source, shape, rng)
            if find_family_split(family) == family_split and is_family(family):
                constants = sample_constants(family, rng)
                if constants is not None:
                    return family, compose(family, constants)


def _sample_parts(source: str, shape: Shape, rng: random.Random) -> FamilyParts:
    family = FamilyParts(source)
    pools = list_slots(family)
    family = family._replace(**{slot: rng.choice(pools[slot]) for slot in shape})
    return family._replace(result=rng.choice([*list_results(family)]))


def sample_constants(family: FamilyParts, rng: random.Random) -> dict[str, Any] | None:
    """Samples the constants of a family, by name; returns None if none are found with which each part matters."""
    for _ in range(ATTEMPTS):
        constants = _sample_constants_once(family, rng)
        if family.source != "numbers" or _each_part_matters(family, constants):
            return constants
    return None


def _sample_constants_once(family: FamilyParts, rng: random.Random) -> dict[str, Any]:
    """Samples constants, whether or not each part matters with them."""
    conditions, change = list_conditions(family), find_change(family)
    pools: dict[str, Any] = dict(change.pools) if change else {}
    pools |= {"p": PLACES[family.place].pool} if family.place else {}
    pools |= {"n": conditions[family.condition].pool} if family.condition else {}
    pools |= {"m": conditions[family.second_condition].pool} if family.second_condition else {}
    code = list_results(family)[family.result].code
    pools |= {"d": parts.DEFAULTS[find_value_kind(family)]} if "{d}" in code else {}
    pools |= {"s": SEPARATORS} if "{s[" in code else {}
    constants = {name: rng.choice(pool) for name, pool in pools.items() if pool}
    if (family.condition, family.second_condition) in RANGES:
        constants["m"] = constants["n"] + rng.randint(4, 15)
    if isinstance(constants.get("n"), str):
        constants["x"] = constants["n"]  # the letter that inputs have, as in `function_inputs`
    return constants | (_sample_result_constant(family, constants, rng) if family.result_condition else {})


def _sample_result_constant(family: FamilyParts, constants: Mapping[str, Any], rng: random.Random) -> dict[str, int]:
    """Samples `c`, the constant of the result condition, and `o`, an input that changes to `c`; inputs are near it."""
    condition = parts.NUMBER_CONDITIONS[family.result_condition]
    if not condition.pool:
        return {}
    if family.source != "numbers":
        return {"c": rng.choice(parts.LETTER_COUNTS[family.change][condition.kind])}
    if condition.kind == "divisor":
        return {"c": rng.choice(parts.DIVISORS)}
    number = rng.choice(INPUT_NUMBERS)
    return {"o": number, "c": eval(write_value(family, "number").format(**constants), {"number": number})}


def _each_part_matters(family: FamilyParts, constants: Mapping[str, Any]) -> bool:
    """Returns whether each part makes a difference to some of INPUT_NUMBERS."""
    if not 2 <= constants.get("c", 2) <= MAX_RESULT:
        return False
    value = write_value(family, "v")
    first = write_condition(family, "condition", "v") or "True"
    second = write_condition(family, "second_condition", "v") or "True"
    last = write_condition(family, "result_condition", value) or "True"
    table = f"[({first}, {second}, {value} != v, {last}) for v in INPUT_NUMBERS]".format(**constants)
    # Per number: whether it meets the first and the second condition, is changed, and meets the result condition then.
    rows: list[tuple[bool, bool, bool, bool]] = eval(table, {"INPUT_NUMBERS": INPUT_NUMBERS})
    selected = [(changed, met_last) for met_first, met_second, changed, met_last in rows if met_first and met_second]
    return (
        len(selected) > 1
        and (not family.condition or any(met_second and not met_first for met_first, met_second, _, _ in rows))
        and (not family.second_condition or any(met_first and not met_second for met_first, met_second, _, _ in rows))
        and (not family.change or any(changed for changed, _ in selected))
        and (not family.result_condition or len({met_last for _, met_last in selected}) == 2)
    )


def list_neighbors(
    family: FamilyParts, constants: Mapping[str, Any], rng: random.Random
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields code and constants of similar functions.

    They differ from the family's function in one constant, by 1, or in one slot, which has another part or none.
    """
    for name, value in constants.items():
        for step in (-1, 1) if isinstance(value, int) and name != "o" else ():
            yield write_body(family), {**constants, name: value + step}
    for slot, names in {**list_slots(family), "result": [*list_results(family)]}.items():
        for name in ("", *names) if getattr(family, slot) else ():
            other = family._replace(**{slot: name})
            if name != getattr(family, slot) and other.result in list_results(other) and not _lacks_needed_part(other):
                same = {key: value for key, value in constants.items() if key not in CONSTANT_NAMES[slot]}
                yield write_body(other), _sample_constants_once(other, rng) | same


def _lacks_needed_part(family: FamilyParts) -> bool:
    """Returns whether one of the parts needs another that the family does not have."""
    if family.result_condition and find_value_kind(family) == "words":
        return True
    if family.result in CHECKS:
        return not family.result_condition
    return bool(family.result_condition) and not family.change
