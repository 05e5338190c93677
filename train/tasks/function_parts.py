"""Lists the parts that function families of the code task are composed of: places, conditions, changes, results.

Each part has a name, which function names contain, and templates of words and code. `function_composition.fill` replaces
the names in angle brackets.

In words:

* `<items>`: the items so far, such as "the even numbers in {a}"; in the words of a place, their noun;
* `<predicate>`: the predicate of the condition that a result checks;
* `<constant>`: the field of a condition's constant, as in code.

In code:

* `<list>`: the list, or a slice of it; `<item>`: the variable of a loop over it;
* `<value>`: the value that a condition tests or a change changes; in the code of a result, an item after any change;
* `<values>`: a generator of the values of those items that meet the conditions;
* `<clause>`: `if` and the conditions, or nothing; `<check>`: the condition that a result checks.

The filled templates are format strings with the fields of `FunctionFamily`. Constants have these names: `p` of a place;
`n`, `m` and `c` of the first, second and result condition; `t`, or letters `u` and `y`, of a change; `d` (default) and
`s` (separator) of a result.
"""

# one entry is one line here
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .function_family import LETTERS, SEPARATORS, N

ITEM_COUNTS = (2, 3, 4)
DIVISORS = tuple(range(2, 10))


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """Describes a place: items selected by index. `code` is the index, which follows the list."""

    text: str
    code: str
    pool: Sequence[int] = ITEM_COUNTS


PLACES: Mapping[str, IndexChoice] = {
    "first": IndexChoice("the first {p} <items> of {a}", "[:{p}]"),
    "last": IndexChoice("the last {p} <items> of {a}", "[-{p}:]"),
    "rest": IndexChoice("the <items> after the first {p} in {a}", "[{p}:]"),
    "front": IndexChoice("the <items> before the last {p} in {a}", "[:-{p}]"),
    "even_places": IndexChoice("the <items> at even indexes of {a}", "[::2]", ()),
    "odd_places": IndexChoice("the <items> at odd indexes of {a}", "[1::2]", ()),
    "every": IndexChoice("the <items> at indexes divisible by {p} in {a}", "[::{p}]", (3, 4)),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Describes a condition on values.

    Attributes:
        kind: how English attaches `text` to the noun: "adjective" before it, "bound", "divisor" or "word" after it.
        predicate: what follows "is"; empty for conditions on words, which no result checks.
        pool: what the constant is sampled from; empty if there is none.
    """

    kind: str
    text: str
    predicate: str
    code: str
    pool: Sequence[int | str] = ()


NUMBER_CONDITIONS: Mapping[str, Condition] = {
    "even": Condition("adjective", "even", "even", "<value> % 2 == 0"),
    "odd": Condition("adjective", "odd", "odd", "<value> % 2 == 1"),
    "positive": Condition("adjective", "positive", "positive", "<value> > 0"),
    "negative": Condition("adjective", "negative", "negative", "<value> < 0"),
    "above": Condition("bound", "greater than <constant>", "greater than <constant>", "<value> > <constant>", N),
    "below": Condition("bound", "less than <constant>", "less than <constant>", "<value> < <constant>", N),
    "from": Condition("bound", "of at least <constant>", "at least <constant>", "<value> >= <constant>", N),
    "upto": Condition("bound", "of at most <constant>", "at most <constant>", "<value> <= <constant>", N),
    "without": Condition("bound", "other than <constant>", "different from <constant>", "<value> != <constant>", N),
    "multiples": Condition("divisor", "divisible by <constant>", "divisible by <constant>", "<value> % <constant> == 0", DIVISORS),
    "no_multiples": Condition("divisor", "not divisible by <constant>", "not divisible by <constant>", "<value> % <constant> != 0", DIVISORS),
}
RANGES = (("above", "below"), ("from", "upto"))  # pairs of a lower and an upper bound

WORD_CONDITIONS: Mapping[str, Condition] = {
    "long": Condition("word", "longer than <constant> letters", "", "len(<value>) > <constant>", (3, 4, 5)),
    "short": Condition("word", "shorter than <constant> letters", "", "len(<value>) < <constant>", (4, 5, 6)),
    "min": Condition("word", "of at least <constant> letters", "", "len(<value>) >= <constant>", (4, 5)),
    "max": Condition("word", "of at most <constant> letters", "", "len(<value>) <= <constant>", (3, 4, 5)),
    "size": Condition("word", "of exactly <constant> letters", "", "len(<value>) == <constant>", (3, 4, 5)),
    "starting": Condition("word", "starting with '<constant>'", "", "<value>.startswith('<constant>')", LETTERS),
    "ending": Condition("word", "ending with '<constant>'", "", "<value>.endswith('<constant>')", LETTERS),
    "with": Condition("word", "containing '<constant>'", "", "'<constant>' in <value>", LETTERS),
    "lacking": Condition("word", "not containing '<constant>'", "", "'<constant>' not in <value>", LETTERS),
}


@dataclass(frozen=True, slots=True)
class ValueChange:
    """Describes a change of each value.

    Attributes:
        verb: as in "squares each of <items>".
        noun: as in "the squares of <items>"; empty if English has none.
        pools: what each constant is sampled from, by name.
        merges_values: whether different values may become equal, so that counting distinct ones depends on the change.
        result_kind: kind of the changed values, numbers or words.
    """

    verb: str
    noun: str
    code: str
    pools: Mapping[str, Sequence[int | str]]
    merges_values: bool = False
    result_kind: str = "numbers"


NUMBER_CHANGES: Mapping[str, ValueChange] = {
    "squares": ValueChange("squares each of <items>", "the squares of <items>", "<value> ** 2", {}, True),
    "cubes": ValueChange("cubes each of <items>", "the cubes of <items>", "<value> ** 3", {}),
    "absolute": ValueChange("takes the absolute value of each of <items>", "the absolute values of <items>", "abs(<value>)", {}, True),
    "negated": ValueChange("negates each of <items>", "", "-<value>", {}),
    "plus": ValueChange("adds {t} to each of <items>", "", "<value> + {t}", {"t": N}),
    "minus": ValueChange("subtracts {t} from each of <items>", "", "<value> - {t}", {"t": N}),
    "taken": ValueChange("subtracts each of <items> from {t}", "", "{t} - <value>", {"t": N}),
    "times": ValueChange("multiplies each of <items> by {t}", "", "<value> * {t}", {"t": DIVISORS}),
    "divided": ValueChange("divides each of <items> by {t}, rounding down,", "", "<value> // {t}", {"t": (2, 3, 4, 5)}, True),
    "modulo": ValueChange("takes each of <items> modulo {t}", "", "<value> % {t}", {"t": DIVISORS[2:]}, True),
    "capped": ValueChange("limits each of <items> to at most {t}", "", "min(<value>, {t})", {"t": N}, True),
    "raised": ValueChange("limits each of <items> to at least {t}", "", "max(<value>, {t})", {"t": N}, True),
}
_SEPARATOR_POOL: dict[str, Sequence[int | str]] = {"t": SEPARATORS}  # type: ignore[dict-item]  # a separator and its name

WORD_CHANGES: Mapping[str, ValueChange] = {
    "upper": ValueChange("converts each of <items> to upper case", "", "<value>.upper()", {}, result_kind="words"),
    "title": ValueChange("converts each of <items> to title case", "", "<value>.title()", {}, result_kind="words"),
    "backwards": ValueChange("reverses each of <items>", "", "<value>[::-1]", {}, result_kind="words"),
    "suffix": ValueChange("adds {t[0]} to the end of each of <items>", "", "<value> + '{t[1]}'", _SEPARATOR_POOL, result_kind="words"),
    "prefix": ValueChange("adds {t[0]} to the start of each of <items>", "", "'{t[1]}' + <value>", _SEPARATOR_POOL, result_kind="words"),
    "replaced": ValueChange("replaces '{u}' by '{y}' in each of <items>", "", "<value>.replace('{u}', '{y}')", {"u": LETTERS, "y": tuple("xzqbk")}, result_kind="words"),
    "starts": ValueChange("cuts each of <items> to its first {t} letters", "", "<value>[:{t}]", {"t": (2, 3, 4)}, True, "words"),
    "initials": ValueChange("takes the first letter of each of <items>", "the first letters of <items>", "<value>[0]", {}, True, "words"),
    "finals": ValueChange("takes the last letter of each of <items>", "the last letters of <items>", "<value>[-1]", {}, True, "words"),
    "lengths": ValueChange("takes the length of each of <items>", "the lengths of <items>", "len(<value>)", {}, True),
    "letters": ValueChange("counts the letter '{u}' in each of <items>", "", "<value>.count('{u}')", {"u": LETTERS}, True),
}

# Constants of conditions on lengths and on counts of letters, by kind of condition: small ones.
LETTER_COUNTS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "lengths": {"bound": (3, 4, 5), "divisor": (2, 3)}, "letters": {"bound": (1, 2), "divisor": (2,)}
}


@dataclass(frozen=True, slots=True)
class FunctionResult:
    """Describes what a function makes of the values.

    Attributes:
        plain_code: shorter code for values that are all items of `<list>`, unchanged; empty if there is none.
    """

    text: str
    code: str
    plain_code: str = ""


_DEFAULT = ", or {d} if there are none"
_LOOP = "for <item> in <list>:\n    "

COMMON_RESULTS: Mapping[str, FunctionResult] = {
    "list": FunctionResult("returns the list of <items>", "return [<values>]", "return <list>"),
    "count": FunctionResult("counts <items>", "return sum(1 for <item> in <list><clause>)"),
    "find_first": FunctionResult(f"returns the first of <items>{_DEFAULT}", "return next((<values>), {d})"),
    "find_last": FunctionResult(f"returns the last of <items>{_DEFAULT}", f"result = {{d}}\n{_LOOP}<clause>result = <value>\nreturn result"),
    "reversed": FunctionResult("returns <items> in reverse order", "return [<values>][::-1]", "return <list>[::-1]"),
    "count_distinct": FunctionResult("counts the distinct values of <items>", "return len({{<values>}})", "return len(set(<list>))"),
}
NUMBER_RESULTS: Mapping[str, FunctionResult] = {
    **COMMON_RESULTS,
    "sum": FunctionResult("returns the sum of <items>", "return sum(<values>)", "return sum(<list>)"),
    "product": FunctionResult("returns the product of <items>", f"result = 1\n{_LOOP}<clause>result *= <value>\nreturn result"),
    "largest": FunctionResult(f"returns the largest of <items>{_DEFAULT}", "return max([<values>], default={d})", "return max(<list>, default={d})"),
    "smallest": FunctionResult(f"returns the smallest of <items>{_DEFAULT}", "return min([<values>], default={d})", "return min(<list>, default={d})"),
    "ascending": FunctionResult("returns <items> in ascending order", "return sorted(<values>)", "return sorted(<list>)"),
    "descending": FunctionResult("returns <items> in descending order", "return sorted([<values>], reverse=True)", "return sorted(<list>, reverse=True)"),
    "distinct": FunctionResult("returns the distinct values of <items> in ascending order", "return sorted({{<values>}})", "return sorted(set(<list>))"),
    "join": FunctionResult("joins <items> into a string with {s[0]} between them", "return '{s[1]}'.join(str(<value>) for <item> in <list><clause>)"),
    # These two check the result condition instead of selecting by it.
    "any": FunctionResult("checks whether any of <items> is <predicate>", "return any(<check> for <item> in <list><clause>)"),
    "all": FunctionResult("checks whether all of <items> are <predicate>", "return all(<check> for <item> in <list><clause>)"),
}
WORD_RESULTS: Mapping[str, FunctionResult] = {
    **COMMON_RESULTS,
    "longest": FunctionResult("returns the longest of <items>, the first one on ties, or {d} if there are none", "return max([<values>], key=len, default={d})", "return max(<list>, key=len, default={d})"),
    "shortest": FunctionResult("returns the shortest of <items>, the first one on ties, or {d} if there are none", "return min([<values>], key=len, default={d})", "return min(<list>, key=len, default={d})"),
    "sorted": FunctionResult("returns <items> in alphabetical order", "return sorted(<values>)", "return sorted(<list>)"),
    "sorted_down": FunctionResult("returns <items> in reverse alphabetical order", "return sorted([<values>], reverse=True)", "return sorted(<list>, reverse=True)"),
    "distinct": FunctionResult("returns the distinct values of <items> in alphabetical order", "return sorted({{<values>}})", "return sorted(set(<list>))"),
    "join": FunctionResult("joins <items> into a string with {s[0]} between them", "return '{s[1]}'.join(<values>)", "return '{s[1]}'.join(<list>)"),
}
CHECKS = ("any", "all")  # results that check the result condition
DEFAULTS = {"numbers": ("0", "-1", "None"), "words": ("''", "None", "'none'")}
