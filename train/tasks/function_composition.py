"""Writes the words and the code of a function family of the code task from the parts that it is composed of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import function_parts as parts
from .function_family import FunctionFamily
from .function_parts import CHECKS, PLACES, Condition, FunctionResult, ValueChange

PLACEHOLDER = re.compile(r"<(\w+)>")
CONSTANT_FIELDS = {"condition": "{n}", "second_condition": "{m}", "result_condition": "{c}"}  # by slot
GROUP_SLOTS = ("place", "kept", "also", "change", "after")  # the slots' names in `group`, which reports have
ARGUMENT_KINDS = {"numbers": "long_ints", "words": "long_words", "text": "long_text"}  # by source


class FamilyParts(NamedTuple):
    """Names the parts of a family, one per slot; "" is none.

    Attributes:
        source: the function's argument: a list of numbers, a list of words, or a text of words.
        place: selects items by index.
        condition: selects items by a condition on each.
        second_condition: selects by another condition; only families with a `condition` have it.
        change: makes another value of each item.
        result_condition: a condition on the changed values, by which a result selects, or which it checks.
        result: what the function returns.
    """

    source: str
    place: str = ""
    condition: str = ""
    second_condition: str = ""
    change: str = ""
    result_condition: str = ""
    result: str = "list"


def fill(template: str, **replacements: str) -> str:
    """Replaces each `<name>` of a template of `function_parts`, in one pass: what is inserted is not searched."""
    return PLACEHOLDER.sub(lambda found: replacements[found[1]], template)


def list_conditions(family: FamilyParts) -> Mapping[str, Condition]:
    """Returns the conditions that items of the family's source can have, by name."""
    return parts.NUMBER_CONDITIONS if family.source == "numbers" else parts.WORD_CONDITIONS


def find_change(family: FamilyParts) -> ValueChange | None:
    """Returns the change of a family, or None if it has none."""
    changes = parts.NUMBER_CHANGES if family.source == "numbers" else parts.WORD_CHANGES
    return changes[family.change] if family.change else None


def find_value_kind(family: FamilyParts) -> str:
    """Returns the kind of the values that the result is made of, after any change: numbers or words."""
    change = find_change(family)
    return change.result_kind if change else "numbers" if family.source == "numbers" else "words"


def list_results(family: FamilyParts) -> Mapping[str, FunctionResult]:
    """Returns the results that values of the family's kind can have, by name."""
    return parts.NUMBER_RESULTS if find_value_kind(family) == "numbers" else parts.WORD_RESULTS


def compose(family: FamilyParts, constants: Mapping[str, Any]) -> FunctionFamily:
    """Writes a family of functions; the pool of each constant has only the constant's value."""
    slots = family[1:-1]
    filled = [part for part in slots if part]
    names = [f"{family.result}_{filled[0]}", f"{family.result}_{filled[-1]}", "_".join((*filled, family.result)[:2])]
    shape = "+".join(slot for slot, part in zip(GROUP_SLOTS, slots, strict=True) if part)
    return FunctionFamily(
        f"{family.source} {shape}",
        "|".join(names),
        ARGUMENT_KINDS[family.source],
        describe(family),
        write_body(family),
        {name: (value,) for name, value in constants.items()},
    )


def describe(family: FamilyParts) -> str:
    """Returns the words that complete "Write a function f(x) that ...", a format string."""
    change, result = find_change(family), list_results(family)[family.result]
    items, predicate, first_step = _describe_items(family), "", ""
    checks = family.result in CHECKS
    if change and change.noun and (checks or not family.result_condition):
        items = fill(change.noun, items=items)
    elif change:
        first_step = f"{fill(change.verb, items=items)} and "
        items = "the results"
    if family.result_condition:
        condition, constant = parts.NUMBER_CONDITIONS[family.result_condition], CONSTANT_FIELDS["result_condition"]
        if checks:
            predicate = fill(condition.predicate, constant=constant)
        else:
            items = f"the {_attach_condition('results', condition, constant)}"
    return first_step + fill(result.text, items=items, predicate=predicate)


def _describe_items(family: FamilyParts) -> str:
    """Returns words for the items that place and conditions select."""
    separate_words = "space-separated words"  # of a text; a list's items are words already
    is_text = family.source == "text"
    noun = "numbers" if family.source == "numbers" else "words"
    if not family.place:
        return f"the {_attach_conditions(separate_words if is_text else noun, family)} in {{a}}"
    place = fill(PLACES[family.place].text, items=separate_words if is_text else "items")
    return f"the {_attach_conditions(noun, family)} among {place}" if family.condition else place


def _attach_conditions(noun: str, family: FamilyParts) -> str:
    """Returns a noun with the family's conditions on items, such as "words of at least {n} letters"."""
    if not family.condition:
        return noun
    conditions = list_conditions(family)
    first = conditions[family.condition]
    described = _attach_condition(noun, first, CONSTANT_FIELDS["condition"])
    if not family.second_condition:
        return described
    second = conditions[family.second_condition]
    if second.kind == "adjective":  # then the first one is too: "positive even numbers"
        return f"{first.text} {second.text} {noun}"
    text = fill(second.text, constant=CONSTANT_FIELDS["second_condition"])
    if first.kind == "adjective":  # "odd numbers of at least {m}"
        return f"{described} {text}"
    # "numbers of at least {n} and at most {m}", "numbers less than {n} that are divisible by {m}"
    return f"{described} {'and' if second.kind == 'bound' else 'that are'} {text.removeprefix('of ')}"


def _attach_condition(noun: str, condition: Condition, constant: str) -> str:
    text = fill(condition.text, constant=constant)
    return f"{text} {noun}" if condition.kind == "adjective" else f"{noun} {text}"


def write_body(family: FamilyParts) -> str:
    """Returns the right answer below its `def` line, a format string."""
    result = list_results(family)[family.result]
    item = "v" if family.source == "numbers" else "w"
    source = "{a}.split()" if family.source == "text" else "{a}"
    source += PLACES[family.place].code if family.place else ""
    value = write_value(family, item)
    check = write_condition(family, "result_condition", value)
    needed = [write_condition(family, "condition", item), write_condition(family, "second_condition", item)]
    needed += [] if family.result in CHECKS else [check]
    condition = " and ".join(filter(None, needed))
    if result.plain_code and value == item and not condition:
        return fill(result.plain_code, list=source)
    clause = f" if {condition}" if condition else ""
    if condition and "\n" in result.code:  # the body of a loop instead of a generator
        clause = f"if {condition}:\n        "
    values = f"{value} for {item} in {source}{clause}"
    return fill(result.code, list=source, item=item, value=value, values=values, clause=clause, check=check)


def write_value(family: FamilyParts, variable: str) -> str:
    """Returns the code of the changed value."""
    change = find_change(family)
    return fill(change.code, value=variable) if change else variable


def write_condition(family: FamilyParts, slot: str, value: str) -> str:
    """Returns the code of a condition on a value, a format string; "" if the family has no condition in this slot."""
    name = getattr(family, slot)
    if not name:
        return ""
    conditions = parts.NUMBER_CONDITIONS if slot == "result_condition" else list_conditions(family)
    code = conditions[name].code
    if "%" in code and (" + " in value or " - " in value):
        value = f"({value})"
    return fill(code, value=value, constant=CONSTANT_FIELDS[slot])
