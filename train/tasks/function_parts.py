"""Lists the parts that function families of the code task are composed of: places, conditions, changes, results.

A part is a name, which function names contain, and its words and code. ITEMS and LIST are replaced by the list's items and
name, NP by the items so far, V by a value, N by a condition's constant. Other constants are fields of format strings:
`{p}` of a place, `{t}` (`{u}`, `{y}`: letters) of a change, `{d}` (default) and `{s}` (separator) of a result.
"""

# one entry is one line here
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .function_family import LETTERS, SEPARATORS, N

NEAR_SMALL = (2, 3, 4)
DIVISORS = tuple(range(2, 10))


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """Selects items by index. `code` follows the list."""

    text: str
    code: str
    pool: Sequence[int] = NEAR_SMALL


PLACES: Mapping[str, IndexChoice] = {
    "first": IndexChoice("the first {p} ITEMS of LIST", "[:{p}]"),
    "last": IndexChoice("the last {p} ITEMS of LIST", "[-{p}:]"),
    "rest": IndexChoice("the ITEMS after the first {p} in LIST", "[{p}:]"),
    "front": IndexChoice("the ITEMS before the last {p} in LIST", "[:-{p}]"),
    "even_places": IndexChoice("the ITEMS at even indexes of LIST", "[::2]", ()),
    "odd_places": IndexChoice("the ITEMS at odd indexes of LIST", "[1::2]", ()),
    "every": IndexChoice("the ITEMS at indexes divisible by {p} in LIST", "[::{p}]", (3, 4)),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Selects values. `text` is attributive: before the noun for kind `adjective`; `predicate` follows "is"."""

    kind: str
    text: str
    predicate: str
    code: str
    pool: Sequence[int | str] = ()


NUMBER_CONDITIONS: Mapping[str, Condition] = {
    "even": Condition("adjective", "even", "even", "V % 2 == 0"),
    "odd": Condition("adjective", "odd", "odd", "V % 2 == 1"),
    "positive": Condition("adjective", "positive", "positive", "V > 0"),
    "negative": Condition("adjective", "negative", "negative", "V < 0"),
    "above": Condition("bound", "greater than N", "greater than N", "V > N", N),
    "below": Condition("bound", "less than N", "less than N", "V < N", N),
    "from": Condition("bound", "of at least N", "at least N", "V >= N", N),
    "upto": Condition("bound", "of at most N", "at most N", "V <= N", N),
    "without": Condition("bound", "other than N", "different from N", "V != N", N),
    "multiples": Condition("divisor", "divisible by N", "divisible by N", "V % N == 0", DIVISORS),
    "no_multiples": Condition("divisor", "not divisible by N", "not divisible by N", "V % N != 0", DIVISORS),
}
RANGES = (("above", "below"), ("from", "upto"))  # pairs of bounds, the second of which is the upper one

WORD_CONDITIONS: Mapping[str, Condition] = {
    "long": Condition("word", "longer than N letters", "", "len(V) > N", (3, 4, 5)),
    "short": Condition("word", "shorter than N letters", "", "len(V) < N", (4, 5, 6)),
    "min": Condition("word", "of at least N letters", "", "len(V) >= N", (4, 5)),
    "max": Condition("word", "of at most N letters", "", "len(V) <= N", (3, 4, 5)),
    "size": Condition("word", "of exactly N letters", "", "len(V) == N", (3, 4, 5)),
    "starting": Condition("word", "starting with 'N'", "", "V.startswith('N')", LETTERS),
    "ending": Condition("word", "ending with 'N'", "", "V.endswith('N')", LETTERS),
    "with": Condition("word", "containing 'N'", "", "'N' in V", LETTERS),
    "lacking": Condition("word", "not containing 'N'", "", "'N' not in V", LETTERS),
}


@dataclass(frozen=True, slots=True)
class Change:
    """Makes another value of each.

    verb: as in "squares each of NP"; noun: as in "the squares of NP", empty if English has none. merges: whether
    different values may become the same, so that counting distinct ones depends on the change. gives: the kind of the
    values that it makes.
    """

    verb: str
    noun: str
    code: str
    pools: Mapping[str, Sequence[int | str]]
    merges: bool = False
    gives: str = "numbers"


def _by(*pool: int) -> dict[str, Sequence[int | str]]:
    return {"t": pool}


NUMBER_CHANGES: Mapping[str, Change] = {
    "squares": Change("squares each of NP", "the squares of NP", "V ** 2", {}, True),
    "cubes": Change("cubes each of NP", "the cubes of NP", "V ** 3", {}),
    "absolute": Change("takes the absolute value of each of NP", "the absolute values of NP", "abs(V)", {}, True),
    "negated": Change("negates each of NP", "", "-V", {}),
    "plus": Change("adds {t} to each of NP", "", "V + {t}", _by(*N)),
    "minus": Change("subtracts {t} from each of NP", "", "V - {t}", _by(*N)),
    "taken": Change("subtracts each of NP from {t}", "", "{t} - V", _by(*N)),
    "times": Change("multiplies each of NP by {t}", "", "V * {t}", _by(*DIVISORS)),
    "divided": Change("divides each of NP by {t}, rounding down,", "", "V // {t}", _by(2, 3, 4, 5), True),
    "modulo": Change("takes each of NP modulo {t}", "", "V % {t}", _by(*DIVISORS[2:]), True),
    "capped": Change("limits each of NP to at most {t}", "", "min(V, {t})", _by(*N), True),
    "raised": Change("limits each of NP to at least {t}", "", "max(V, {t})", _by(*N), True),
}
_SIGN: dict[str, Sequence[int | str]] = {"t": SEPARATORS}  # type: ignore[dict-item]  # a separator and its name

WORD_CHANGES: Mapping[str, Change] = {
    "upper": Change("converts each of NP to upper case", "", "V.upper()", {}, gives="words"),
    "title": Change("converts each of NP to title case", "", "V.title()", {}, gives="words"),
    "backwards": Change("reverses each of NP", "", "V[::-1]", {}, gives="words"),
    "suffix": Change("adds {t[0]} to the end of each of NP", "", "V + '{t[1]}'", _SIGN, gives="words"),
    "prefix": Change("adds {t[0]} to the start of each of NP", "", "'{t[1]}' + V", _SIGN, gives="words"),
    "replaced": Change("replaces '{u}' by '{y}' in each of NP", "", "V.replace('{u}', '{y}')", {"u": LETTERS, "y": tuple("xzqbk")}, gives="words"),
    "starts": Change("cuts each of NP to its first {t} letters", "", "V[:{t}]", _by(2, 3, 4), True, "words"),
    "initials": Change("takes the first letter of each of NP", "the first letters of NP", "V[0]", {}, True, "words"),
    "finals": Change("takes the last letter of each of NP", "the last letters of NP", "V[-1]", {}, True, "words"),
    "lengths": Change("takes the length of each of NP", "the lengths of NP", "len(V)", {}, True),
    "letters": Change("counts the letter '{u}' in each of NP", "", "V.count('{u}')", {"u": LETTERS}, True),
}

# What lengths and counts of letters are compared with, by kind of condition.
FEW: Mapping[str, Mapping[str, Sequence[int]]] = {
    "lengths": {"bound": (3, 4, 5), "divisor": (2, 3)}, "letters": {"bound": (1, 2), "divisor": (2,)}
}


@dataclass(frozen=True, slots=True)
class Result:
    """Makes a result of values. In `code`, G is a generator of them, SOURCE its list, E its value, IF its condition.

    bare: the code for all items of SOURCE as they are, if it is another.
    """

    text: str
    code: str
    bare: str = ""


_DEFAULT = ", or {d} if there are none"
_LOOP = "for V in SOURCE:\n    "

COMMON_RESULTS: Mapping[str, Result] = {
    "list": Result("returns the list of NP", "return [G]", "return SOURCE"),
    "count": Result("counts NP", "return sum(1 for V in SOURCEIF)"),
    "find_first": Result(f"returns the first of NP{_DEFAULT}", "return next((G), {d})"),
    "find_last": Result(f"returns the last of NP{_DEFAULT}", f"result = {{d}}\n{_LOOP}IFresult = E\nreturn result"),
    "reversed": Result("returns NP in reverse order", "return [G][::-1]", "return SOURCE[::-1]"),
    "count_distinct": Result("counts the distinct values of NP", "return len({{G}})", "return len(set(SOURCE))"),
}
NUMBER_RESULTS: Mapping[str, Result] = {
    **COMMON_RESULTS,
    "sum": Result("returns the sum of NP", "return sum(G)", "return sum(SOURCE)"),
    "product": Result("returns the product of NP", f"result = 1\n{_LOOP}IFresult *= E\nreturn result"),
    "largest": Result(f"returns the largest of NP{_DEFAULT}", "return max([G], default={d})", "return max(SOURCE, default={d})"),
    "smallest": Result(f"returns the smallest of NP{_DEFAULT}", "return min([G], default={d})", "return min(SOURCE, default={d})"),
    "ascending": Result("returns NP in ascending order", "return sorted(G)", "return sorted(SOURCE)"),
    "descending": Result("returns NP in descending order", "return sorted([G], reverse=True)", "return sorted(SOURCE, reverse=True)"),
    "distinct": Result("returns the distinct values of NP in ascending order", "return sorted({{G}})", "return sorted(set(SOURCE))"),
    "join": Result("joins NP into a string with {s[0]} between them", "return '{s[1]}'.join(str(E) for V in SOURCEIF)"),
    # these two check the condition on the values instead of selecting by it
    "any": Result("checks whether any of NP is PREDICATE", "return any(CHECK for V in SOURCEIF)"),
    "all": Result("checks whether all of NP are PREDICATE", "return all(CHECK for V in SOURCEIF)"),
}
WORD_RESULTS: Mapping[str, Result] = {
    **COMMON_RESULTS,
    "longest": Result("returns the longest of NP, the first one on ties, or {d} if there are none", "return max([G], key=len, default={d})", "return max(SOURCE, key=len, default={d})"),
    "shortest": Result("returns the shortest of NP, the first one on ties, or {d} if there are none", "return min([G], key=len, default={d})", "return min(SOURCE, key=len, default={d})"),
    "sorted": Result("returns NP in alphabetical order", "return sorted(G)", "return sorted(SOURCE)"),
    "sorted_down": Result("returns NP in reverse alphabetical order", "return sorted([G], reverse=True)", "return sorted(SOURCE, reverse=True)"),
    "distinct": Result("returns the distinct values of NP in alphabetical order", "return sorted({{G}})", "return sorted(set(SOURCE))"),
    "join": Result("joins NP into a string with {s[0]} between them", "return '{s[1]}'.join(G)", "return '{s[1]}'.join(SOURCE)"),
}
CHECKS = ("any", "all")
DEFAULTS = {"numbers": ("0", "-1", "None"), "words": ("''", "None", "'none'")}
