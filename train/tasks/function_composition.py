"""Words and code of a combination of parts from `function_parts`: what the function does in English, and in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from . import function_parts as parts
from .function_family import FunctionFamily
from .function_parts import CHECKS, PLACES, Change, Condition, Result


class Family(NamedTuple):
    """A combination of parts; "" is none. `source` is a list of numbers, a list of words, or the words of a text."""

    source: str
    place: str = ""
    kept: str = ""
    also: str = ""
    change: str = ""
    after: str = ""
    result: str = "list"


def list_conditions(family: Family) -> Mapping[str, Condition]:
    """Returns the conditions on the items of a source, by name."""
    return parts.NUMBER_CONDITIONS if family.source == "numbers" else parts.WORD_CONDITIONS


def find_change(family: Family) -> Change | None:
    """Returns the change of a family, if it has one."""
    changes = parts.NUMBER_CHANGES if family.source == "numbers" else parts.WORD_CHANGES
    return changes[family.change] if family.change else None


def find_kind(family: Family) -> str:
    """Returns the kind of the values that the result is made of: numbers or words."""
    change = find_change(family)
    return change.gives if change else "numbers" if family.source == "numbers" else "words"


def list_results(family: Family) -> Mapping[str, Result]:
    """Returns the results of values of the family's kind, by name."""
    return parts.NUMBER_RESULTS if find_kind(family) == "numbers" else parts.WORD_RESULTS


def compose(family: Family, constants: Mapping[str, Any]) -> FunctionFamily:
    """Returns a family with its words and code; its constants are values to sample from, one each."""
    filled = [part for part in family[1:-1] if part]
    names = [f"{family.result}_{filled[0]}", f"{family.result}_{filled[-1]}", "_".join((*filled, family.result)[:2])]
    shape = "+".join(slot for slot, part in zip(Family._fields[1:-1], family[1:-1], strict=True) if part)
    kinds = {"numbers": "many", "words": "terms", "text": "line"}
    draws = {name: (value,) for name, value in constants.items()}
    group = f"{family.source} {shape}"
    return FunctionFamily(group, "|".join(names), kinds[family.source], describe(family), write(family), draws)


def describe(family: Family) -> str:
    """Returns the words that complete "Write a function f(x) that ...", a format string."""
    change, text = find_change(family), list_results(family)[family.result].text
    items = _describe_items(family)
    before = ""
    checks = family.result in CHECKS
    if change and change.noun and (checks or not family.after):
        items = change.noun.replace("NP", items)
    elif change:
        before = f"{change.verb.replace('NP', items)} and "
        items = "the results"
    if family.after:
        condition = parts.NUMBER_CONDITIONS[family.after]
        text = text.replace("PREDICATE", condition.predicate.replace("N", "{c}"))
        items = (
            items if checks else f"the {_describe_attribute('results', condition.text.replace('N', '{c}'), condition)}"
        )
    return before + text.replace("NP", items)


def _describe_items(family: Family) -> str:
    """Returns the selected items in words."""
    noun = some = "numbers" if family.source == "numbers" else "words"
    apart = "space-separated words"  # of a string, and not of a list
    conditions = list_conditions(family)
    if family.kept:
        first = conditions[family.kept]
        some = _describe_attribute(some, first.text.replace("N", "{n}"), first)
    if family.also:
        second = conditions[family.also]
        joint = "" if first.kind == "adjective" else " and" if second.kind == "bound" else " that are"
        words = second.text.replace("N", "{m}").removeprefix("of " if joint else "")
        some = f"{first.text} {words} {noun}" if second.kind == "adjective" else f"{some}{joint} {words}"
    if not family.place:
        return f"the {some.replace('words', apart) if family.source == 'text' else some} in {{a}}"
    place = PLACES[family.place].text.replace("ITEMS", apart if family.source == "text" else "items")
    place = place.replace("LIST", "{a}")
    return f"the {some} among {place}" if family.kept else place


def _describe_attribute(noun: str, words: str, condition: Condition) -> str:
    return f"{words} {noun}" if condition.kind == "adjective" else f"{noun} {words}"


def write(family: Family) -> str:
    """Returns the right answer below its `def` line, a format string."""
    result = list_results(family)[family.result]
    variable = "v" if family.source == "numbers" else "w"
    source = "{a}.split()" if family.source == "text" else "{a}"
    source += PLACES[family.place].code if family.place else ""
    value, check = write_value(family, variable), write_condition(family, "after", write_value(family, variable))
    needed = [write_condition(family, "kept", variable), write_condition(family, "also", variable)]
    needed += [] if family.result in CHECKS else [check]
    condition = " and ".join(filter(None, needed))
    if result.bare and value == variable and not condition:
        return result.bare.replace("SOURCE", source)
    if "\n" in result.code:
        inside = f"if {condition}:\n        " if condition else ""
    else:
        inside = f" if {condition}" if condition else ""
    code = result.code.replace("G", "E for V in SOURCEIF").replace("CHECK", check)
    code = code.replace("SOURCE", source).replace("IF", inside).replace("E", value)
    return code.replace("V", variable)


def write_value(family: Family, variable: str) -> str:
    """Returns the code of the changed value."""
    change = find_change(family)
    return change.code.replace("V", variable) if change else variable


def write_condition(family: Family, slot: str, value: str) -> str:
    """Returns the code of one of the family's conditions on a value, or "" if it has none."""
    part = getattr(family, slot)
    if not part:
        return ""
    conditions = parts.NUMBER_CONDITIONS if slot == "after" else list_conditions(family)
    code = conditions[part].code
    if "%" in code and (" + " in value or " - " in value):
        value = f"({value})"
    return code.replace("N", {"kept": "{n}", "also": "{m}", "after": "{c}"}[slot]).replace("V", value)
