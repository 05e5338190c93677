"""Composes function families of the code task from parts: a place, conditions, a change, a result.

A family is a combination of parts without their constants. Those of the splits `valid_families` and `test_families` are
diagonals of the grid of all parts (`split_of_family`): each part, and each two parts that can follow each other, are in
families of `train` too; the combination is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from . import function_parts as parts
from .function_composition import (
    Family,
    compose,
    find_change,
    find_kind,
    list_conditions,
    list_results,
    write,
    write_condition,
    write_value,
)
from .function_family import SEPARATORS, FunctionFamily
from .function_parts import CHECKS, PLACES, RANGES

SPLITS = ("valid_families", "test_families", "valid_seen", "test_seen")
FOLDS = 8  # diagonals; one is test, one is valid
MIN_PARTS = 3  # families of fewer parts are all in training: they are those of the templates, or next to them
NUMBERS = range(-9, 31)  # what inputs are of, except numbers near a constant
MAX_RESULT = 99  # the largest constant that results are compared with
ATTEMPTS = 40  # at constants with which each part of a family matters, and at families of a shape
# The names of the constants of each slot.
CONSTANTS = {"place": "p", "kept": "nx", "also": "m", "change": "tuy", "after": "co", "result": "ds"}

Shape = tuple[str, ...]

# Relative frequencies of the slots that a family fills, besides its result.
SHAPES: Mapping[Shape, int] = {
    ("place",): 1, ("kept",): 2, ("change",): 2, ("after",): 1,
    ("place", "kept"): 4, ("kept", "also"): 4, ("kept", "change"): 5, ("place", "change"): 4, ("change", "after"): 5,
    ("place", "after"): 1, ("kept", "after"): 1,
    ("place", "kept", "change"): 6, ("kept", "also", "change"): 4, ("place", "kept", "after"): 1,
    ("kept", "change", "after"): 1, ("place", "change", "after"): 1,
}  # fmt: skip
SOURCES = {"numbers": 3, "words": 1, "text": 1}  # relative frequencies


def _has_sound_selection(family: Family) -> bool:
    """Returns whether all parts but the result fit together, and each of them matters."""
    if family.after and find_kind(family) == "words":
        return False
    if family.also and not _can_join(family):
        return False
    if family.kept == family.after == "negative":
        return False  # one change alone leaves both with a meaning, so that they could be together in no other family
    if family.source != "numbers":
        return family.after != "negative" and (family.change, family.after) != ("lengths", "positive")
    return _is_possible(family.kept, family.also, family.change, family.after)


def _has_sound_result(family: Family) -> bool:
    """Returns whether the result fits the other parts, so that each of them matters."""
    checks = family.result in CHECKS
    if checks:
        return bool(family.after)
    if family.after and (family.place or family.kept or not family.change):
        return False  # without a change it is a condition on the items; with more parts it takes too many words
    if family.result == "count":
        return bool(family.after if family.change else family.kept)
    if family.result in ("find_first", "find_last"):
        return bool(family.kept or family.after)
    if family.result == "count_distinct":
        change = find_change(family)
        return change is None or change.merges
    return family.result not in ("longest", "shortest") or family.change not in ("initials", "finals", "starts")


def _can_join(family: Family) -> bool:
    """Returns whether English joins the two conditions: adjectives before bounds before divisors, or a range."""
    conditions = list_conditions(family)
    kinds = [conditions[family.kept].kind, conditions[family.also].kind]
    order = ["adjective", "bound", "divisor", "word"]
    if kinds == ["adjective", "adjective"]:
        return family.kept in ("positive", "negative") and family.also in ("even", "odd")
    return (family.kept, family.also) in RANGES or order.index(kinds[0]) < order.index(kinds[1]) < 3


@cache
def _is_possible(kept: str, also: str, change: str, after: str) -> bool:
    """Returns whether numbers can be found with which each part matters; "the odd even numbers" are none."""
    family = Family("numbers", "", kept, also, change, after)
    return sample_constants(family, random.Random(repr(family))) is not None


def is_of_test_templates(family: Family) -> bool:
    """Returns whether the family is held out for the split `test_templates`, in other words."""
    source, place, kept, also, change, after, result = family
    if also or (place and (kept or change)) or (after and (kept or place or change)):
        return False
    compared = kept in ("above", "below", "from", "upto")
    return (
        (kept in ("even", "odd") and change in ("squares", "cubes") and result == "sum")
        or (kept in ("multiples", "no_multiples") and not change and result == "count")
        or (compared and not change and result == "product")
        or (compared and change == "times" and result == "list")
        or (source != "numbers" and kept in ("starting", "ending") and result == "count")
        or (source == "numbers" and place == "first" and result == "sum")
        or after in ("multiples", "no_multiples")
    )


def split_of_family(family: Family) -> str:
    """Returns the split of a family by its place in the grid of parts."""
    filled = [part for part in family[1:-1] if part]
    if len(filled) + (family.result != "list") < MIN_PARTS:
        return "train"
    diagonal = sum(axis[part] for axis, part in zip(_list_axes(family.source, find_kind(family)), family, strict=True))
    return {0: "test", 1: "valid"}.get(diagonal % FOLDS, "train")


def list_slots(family: Family) -> Mapping[str, Sequence[str]]:
    """Returns the parts that each slot but the result can have in families of one source."""
    numbers, conditions = family.source == "numbers", [*list_conditions(family)]
    changes = parts.NUMBER_CHANGES if numbers else parts.WORD_CHANGES
    return {
        "place": [*PLACES],
        "kept": conditions,
        "also": conditions,
        "change": [*changes],
        "after": [*parts.NUMBER_CONDITIONS],
    }


@cache
def _list_axes(source: str, kind: str) -> tuple[dict[str, int], ...]:
    """Returns the places of the parts on each axis of the grid; a slot without a part is at 0, as its first part is."""
    results = parts.NUMBER_RESULTS if kind == "numbers" else parts.WORD_RESULTS
    axes = ([*SOURCES], *list_slots(Family(source)).values(), [*results])
    return tuple({"": 0, **{part: place for place, part in enumerate(axis)}} for axis in axes)


def is_family(family: Family) -> bool:
    """Returns whether a combination of parts is a family: they fit together, and each of them matters."""
    if family.result not in list_results(family) or is_of_test_templates(family):
        return False
    return _has_sound_result(family) and _has_sound_selection(family)


def sample_family(split: str, rng: random.Random) -> tuple[Family, FunctionFamily]:
    """Samples a family of `train` or of one of SPLITS, and its constants."""
    wanted = split.removesuffix("_families") if split.endswith("_families") else "train"
    while True:
        source = rng.choices([*SOURCES], [*SOURCES.values()])[0]
        shape = rng.choices([*SHAPES], [*SHAPES.values()])[0]
        for _ in range(ATTEMPTS):
            family = _sample_parts(source, shape, rng)
            if split_of_family(family) == wanted and is_family(family):
                constants = sample_constants(family, rng)
                if constants is not None:
                    return family, compose(family, constants)


def _sample_parts(source: str, shape: Shape, rng: random.Random) -> Family:
    family = Family(source)
    pools = list_slots(family)
    family = family._replace(**{slot: rng.choice(pools[slot]) for slot in shape})
    return family._replace(result=rng.choice([*list_results(family)]))


def sample_constants(family: Family, rng: random.Random) -> dict[str, Any] | None:
    """Samples the constants that a family has, by name; None if none are found with which each part matters."""
    for _ in range(ATTEMPTS):
        constants = _sample_once(family, rng)
        if family.source != "numbers" or _each_part_matters(family, constants):
            return constants
    return None


def _sample_once(family: Family, rng: random.Random) -> dict[str, Any]:
    """Samples constants. `o` is a number that changes to `c`, what results are compared with; inputs are near it."""
    conditions, change = list_conditions(family), find_change(family)
    pools: dict[str, Any] = dict(change.pools) if change else {}
    pools |= {"p": PLACES[family.place].pool} if family.place else {}
    pools |= {name: conditions[part].pool for name, part in zip("nm", family[2:4], strict=True) if part}
    code = list_results(family)[family.result].code
    pools |= {"d": parts.DEFAULTS[find_kind(family)]} if "{d}" in code else {}
    pools |= {"s": SEPARATORS} if "{s[" in code else {}
    constants = {name: rng.choice(pool) for name, pool in pools.items() if pool}
    if (family.kept, family.also) in RANGES:
        constants["m"] = constants["n"] + rng.randint(4, 15)
    if isinstance(constants.get("n"), str):
        constants["x"] = constants["n"]
    return constants | (_sample_result_constant(family, constants, rng) if family.after else {})


def _sample_result_constant(family: Family, constants: Mapping[str, Any], rng: random.Random) -> dict[str, int]:
    condition = parts.NUMBER_CONDITIONS[family.after]
    if not condition.pool:
        return {}
    if family.source != "numbers":
        return {"c": rng.choice(parts.FEW[family.change][condition.kind])}
    if condition.kind == "divisor":
        return {"c": rng.choice(parts.DIVISORS)}
    near = rng.choice(NUMBERS)
    return {"o": near, "c": eval(write_value(family, "near").format(**constants), {"near": near})}


def _each_part_matters(family: Family, constants: Mapping[str, Any]) -> bool:
    """Returns whether numbers are known that tell the family from that without one of its parts."""
    if not 2 <= constants.get("c", 2) <= MAX_RESULT:
        return False
    value = write_value(family, "v")
    first, second, after = (
        write_condition(family, slot, value if slot == "after" else "v") or "True" for slot in ("kept", "also", "after")
    )
    rows = f"[({first}, {second}, {value} != v, {after}) for v in NUMBERS]".format(**constants)
    seen = eval(rows, {"NUMBERS": NUMBERS})
    kept = [row[2:] for row in seen if row[0] and row[1]]
    return (
        len(kept) > 1
        and (not family.kept or any(row[1] and not row[0] for row in seen))
        and (not family.also or any(row[0] and not row[1] for row in seen))
        and (not family.change or any(differs for differs, _ in kept))
        and (not family.after or len({met for _, met in kept}) == 2)
    )


def list_neighbors(
    family: Family, constants: Mapping[str, Any], rng: random.Random
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields code and constants of functions next to a family's: another part, or none, in one slot; a constant +-1."""
    for name, value in constants.items():
        for step in (-1, 1) if isinstance(value, int) and name != "o" else ():
            yield write(family), {**constants, name: value + step}
    for slot, names in {**list_slots(family), "result": [*list_results(family)]}.items():
        for name in ("", *names) if getattr(family, slot) else ():
            other = family._replace(**{slot: name})
            if name != getattr(family, slot) and other.result in list_results(other) and not _lacks(other):
                same = {key: value for key, value in constants.items() if key not in CONSTANTS[slot]}
                yield write(other), _sample_once(other, rng) | same


def _lacks(family: Family) -> bool:
    """Returns whether a part is left without one that it needs."""
    if family.after and find_kind(family) == "words":
        return True
    return (family.result in CHECKS) != bool(family.after) and (family.result in CHECKS or not family.change)
