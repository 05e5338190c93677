"""Lists the vocabulary of the code task and its families over lists of numbers."""

# one entry is a few lines here; one argument per line would make it three times as long
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FunctionFamily:
    """One kind of function.

    `names` are function names separated by `|`; `kinds` are the kinds of the arguments separated by blanks;
    `text` completes "Write a function f(x) that ..."; `body` is the answer below its `def` line, not indented.
    All four texts are format strings over the arguments `a`, `b` and over `draws`, from which values are sampled.
    """

    group: str
    names: str
    kinds: str
    text: str
    body: str
    draws: Mapping[str, Sequence[Any]]


def family(group: str, names: str, kinds: str, text: str, body: str, **draws: Sequence[Any]) -> FunctionFamily:
    """Returns the family with these texts and, by keyword, the values that each of its names is sampled from."""
    return FunctionFamily(group, names, kinds, text, body, draws)


N = tuple(range(2, 21))
SMALL = tuple(range(2, 7))
HIGH = tuple(range(21, 41))
COMPARISONS = (
    ("greater than", ">", "above"),
    ("less than", "<", "below"),
    ("at least", ">=", "from"),
    ("at most", "<=", "upto"),
)
PARITY = (("even", 0), ("odd", 1))
POWER = (("square", 2), ("cube", 3))
EXTREME = (("largest", "max"), ("smallest", "min"))
DIVISIBLE = (("divisible", "=="), ("not divisible", "!="))
ANY_WORDS = (("any number", "any"), ("every number", "all"))
ORDER = (("ascending", "", "up"), ("descending", ", reverse=True", "down"))
ARITHMETIC = (("sum", "+"), ("difference", "-"), ("product", "*"))
LABELS = (("big", "small"), ("high", "low"), ("yes", "no"), ("hot", "cold"), ("good", "bad"))
LETTERS = tuple("aeiorstln")
SEPARATORS = (("a dash", "-"), ("a comma", ","), ("a colon", ":"), ("a plus", "+"), ("a slash", "/"))

LISTS = (
    family("add_all", "add_{n}|plus_{n}|increase_by_{n}", "ints", "adds {n} to every number in {a}",
        "return [v + {n} for v in {a}]", n=N),
    family("subtract_all", "subtract_{n}|minus_{n}|decrease_by_{n}", "ints", "subtracts {n} from every number in {a}",
        "return [v - {n} for v in {a}]", n=N),
    family("scale_all", "scale_by_{n}|times_{n}|multiply_{n}", "ints", "multiplies every number in {a} by {n}",
        "return [v * {n} for v in {a}]", n=N),
    family("power_all", "{p[0]}_all|{p[0]}_each|list_{p[0]}", "ints", "returns the {p[0]} of every number in {a}",
        "return [v ** {p[1]} for v in {a}]", p=POWER),
    family("affine_all", "scale_and_add|times_plus|linear_all", "ints",
        "multiplies every number in {a} by {n} and then adds {m}", "return [v * {n} + {m} for v in {a}]", n=N, m=N),
    family("modulo_all", "mod_{n}|remainders_{n}|rest_all", "ints",
        "returns the remainder of every number in {a} divided by {n}", "return [v % {n} for v in {a}]", n=N),
    family("map_value", "map_{p[2]}|all_{p[2]}|{p[2]}_values", "ints", "returns the {p[0]} of every number in {a}",
        "return [{p[1]} for v in {a}]",
        p=(("absolute value", "abs(v)", "abs"), ("negative", "-v", "neg"), ("double", "v + v", "double"))),
    family("keep_compare", "keep_{c[2]}_{n}|filter_{c[2]}|only_{c[2]}_{n}", "ints",
        "keeps the numbers in {a} that are {c[0]} {n}", "return [v for v in {a} if v {c[1]} {n}]", c=COMPARISONS, n=N),
    family("keep_parity", "keep_{p[0]}|only_{p[0]}|filter_{p[0]}", "ints", "keeps the {p[0]} numbers in {a}",
        "return [v for v in {a} if v % 2 == {p[1]}]", p=PARITY),
    family("keep_divisible", "keep_multiples|filter_{n}|select_by_{n}", "ints",
        "keeps the numbers in {a} that are {d[0]} by {n}", "return [v for v in {a} if v % {n} {d[1]} 0]", d=DIVISIBLE,
        n=N[1:]),
    family("keep_between", "keep_between|in_range|within_{n}_{m}", "ints",
        "keeps the numbers in {a} that are {c[0]} {n} and {e[0]} {m}",
        "return [v for v in {a} if v {c[1]} {n} and v {e[1]} {m}]", c=(COMPARISONS[0], COMPARISONS[2]),
        e=(COMPARISONS[1], COMPARISONS[3]), n=N, m=HIGH),
    family("count_compare", "count_{c[2]}_{n}|how_many_{c[2]}|number_{c[2]}_{n}", "ints",
        "counts the numbers in {a} that are {c[0]} {n}",
        "count = 0\nfor v in {a}:\n    if v {c[1]} {n}:\n        count += 1\nreturn count", c=COMPARISONS, n=N),
    family("count_parity", "count_{p[0]}|how_many_{p[0]}|number_{p[0]}", "ints", "counts the {p[0]} numbers in {a}",
        "count = 0\nfor v in {a}:\n    if v % 2 == {p[1]}:\n        count += 1\nreturn count", p=PARITY),
    family("sum_compare", "sum_{c[2]}_{n}|total_{c[2]}|add_{c[2]}_{n}", "ints",
        "returns the sum of the numbers in {a} that are {c[0]} {n}",
        "total = 0\nfor v in {a}:\n    if v {c[1]} {n}:\n        total += v\nreturn total", c=COMPARISONS, n=N),
    family("sum_parity", "sum_{p[0]}|total_{p[0]}|add_{p[0]}", "ints", "returns the sum of the {p[0]} numbers in {a}",
        "total = 0\nfor v in {a}:\n    if v % 2 == {p[1]}:\n        total += v\nreturn total", p=PARITY),
    family("sum_start", "sum_from_{n}|total_plus_{n}|sum_and_{n}", "ints",
        "returns {n} plus the sum of the numbers in {a}", "total = {n}\nfor v in {a}:\n    total += v\nreturn total",
        n=N),
    family("product", "product|multiply_all|times_all", "ints", "returns {n} times the product of the numbers in {a}",
        "result = {n}\nfor v in {a}:\n    result *= v\nreturn result", n=N),
    family("sum_powers", "sum_{p[0]}|total_{p[0]}|add_{p[0]}", "ints",
        "returns the sum of the {p[0]} of every number in {a}",
        "total = 0\nfor v in {a}:\n    total += v ** {p[1]}\nreturn total", p=POWER),
    family("extreme_or", "{e[0]}_or_{n}|find_{e[0]}|{e[1]}_or_{n}", "ints",
        "returns the {e[0]} number in {a}, or {n} if {a} is empty", "if not {a}:\n    return {n}\nreturn {e[1]}({a})",
        e=EXTREME, n=N),
    family("spread", "spread_plus|gap_{n}|spread_{n}", "some",
        "returns the largest number in {a} minus the smallest, plus {n}", "return max({a}) - min({a}) + {n}", n=N),
    family("first_compare", "first_{c[2]}_{n}|find_{c[2]}|find_first_{c[2]}", "ints",
        "returns the first number in {a} that is {c[0]} {n}, or {m} if there is none",
        "for v in {a}:\n    if v {c[1]} {n}:\n        return v\nreturn {m}", c=COMPARISONS, n=N, m=(0, -1, None)),
    family("take_first", "take_{n}|first_{n}|head_{n}", "ints", "returns the first {n} items of {a}",
        "return {a}[:{n}]", n=SMALL),
    family("take_last", "last_{n}|tail_{n}|end_{n}", "ints", "returns the last {n} items of {a}", "return {a}[-{n}:]",
        n=SMALL),
    family("skip_first", "skip_{n}|drop_{n}|without_first_{n}", "ints", "returns {a} without its first {n} items",
        "return {a}[{n}:]", n=SMALL),
    family("skip_last", "cut_{n}|drop_last_{n}|without_last_{n}", "ints", "returns {a} without its last {n} items",
        "return {a}[:-{n}]", n=SMALL),
    family("every_nth", "every_{n}|step_{n}|pick_every_{n}", "ints",
        "returns every item of {a} at an index divisible by {n}", "return {a}[::{n}]", n=SMALL),
    family("reverse_scaled", "reverse_times|backwards_{n}|flip_scale", "ints",
        "returns the items of {a} in reverse order, each times {n}", "return [v * {n} for v in {a}[::-1]]", n=N),
    family("sort_order", "sort_{o[2]}|order_{o[2]}|sorted_{o[2]}", "ints", "sorts the numbers in {a} in {o[0]} order",
        "return sorted({a}{o[1]})", o=ORDER),
    family("extreme_few", "{e[0]}_{n}|top_{e[0]}|pick_{e[0]}_{n}", "ints",
        "returns the {n} {e[0]} numbers in {a} in {e[1]} order", "return sorted({a}{e[2]})[:{n}]",
        e=(("largest", "descending", ", reverse=True"), ("smallest", "ascending", "")), n=SMALL),
    family("unique", "unique_{o[2]}|distinct_{o[2]}|set_{o[2]}", "ints",
        "returns the distinct numbers in {a} in {o[0]} order", "return sorted(set({a}){o[1]})", o=ORDER),
    family("count_distinct", "count_unique|distinct_plus|unique_{n}", "ints",
        "returns the number of distinct items in {a} plus {n}", "return len(set({a})) + {n}", n=N),
    family("running", "running_total|partial_sums|cumulative", "ints",
        "returns the list of running totals of {a}, starting from {n}",
        "total = {n}\nresult = []\nfor v in {a}:\n    total += v\n    result.append(total)\nreturn result", n=(0, *N)),
    family("neighbours", "neighbour_{o[0]}|adjacent_{o[0]}|next_{o[0]}", "ints",
        "returns the {o[0]} of every item of {a} after the first and the item before it",
        "return [{a}[i] {o[1]} {a}[i - 1] for i in range(1, len({a}))]", o=ARITHMETIC),
    family("with_index", "with_index|index_{o[0]}|by_index", "ints",
        "returns for every item of {a} the {o[0]} of the item and its index",
        "result = []\nfor i, v in enumerate({a}):\n    result.append(v {o[1]} i)\nreturn result", o=ARITHMETIC),
    family("index_parity", "{p[0]}_index|at_{p[0]}|{p[0]}_places", "ints",
        "returns the items of {a} at {p[0]} indexes", "return [v for i, v in enumerate({a}) if i % 2 == {p[1]}]",
        p=PARITY),
    family("any_compare", "{q[1]}_{c[2]}_{n}|is_{q[1]}_{c[2]}|check_{q[1]}_{n}", "ints",
        "checks whether {q[0]} in {a} is {c[0]} {n}", "return {q[1]}(v {c[1]} {n} for v in {a})", q=ANY_WORDS,
        c=COMPARISONS, n=N),
    family("contains", "has_{n}|contains_{n}|check_{n}", "ints", "checks whether {n} is {i} {a}", "return {n} {i} {a}",
        i=("in", "not in"), n=N),
    family("count_value", "count_{n}|times_{n}|how_many_{n}", "ints", "counts how often {n} occurs in {a}",
        "return {a}.count({n})", n=N),
    family("replace_value", "replace_{n}|swap_{n}_{m}|change_{n}", "ints", "replaces every {n} in {a} by {m}",
        "return [{m} if v == {n} else v for v in {a}]", n=N, m=HIGH),
    family("clamp_all", "limit_{n}|clamp_all|cap_{n}", "ints",
        "replaces every number in {a} that is {c[0]} {n} by {n}", "return [{c[1]}(v, {n}) for v in {a}]",
        c=(("greater than", "min"), ("less than", "max")), n=N),
    family("label_all", "label_all|mark_{c[2]}|name_each", "ints",
        "returns '{w[0]}' for every number in {a} that is {c[0]} {n} and '{w[1]}' for the others",
        "return ['{w[0]}' if v {c[1]} {n} else '{w[1]}' for v in {a}]", w=LABELS, c=COMPARISONS, n=N),
    family("mean", "mean_or|average|whole_mean", "ints",
        "returns the sum of {a} divided by its length, rounded down, or {n} if {a} is empty",
        "if not {a}:\n    return {n}\nreturn sum({a}) // len({a})", n=(0, *N)),
    family("split_parity", "change_{p[0]}|adjust_{p[0]}|bump_{p[0]}", "ints",
        "adds {n} to the {p[0]} numbers in {a} and leaves the others",
        "result = []\nfor v in {a}:\n    if v % 2 == {p[1]}:\n        result.append(v + {n})\n" "    else:\n        result.append(v)\nreturn result",
        p=PARITY, n=N),
    family("sum_until", "sum_until_{n}|total_until|add_until_{n}", "ints",
        "adds up the numbers in {a} and stops as soon as the total is {c[0]} {n}",
        "total = 0\nfor v in {a}:\n    total += v\n    if total {c[1]} {n}:\n        break\nreturn total",
        c=(COMPARISONS[0], COMPARISONS[2]), n=N),
    family("index_of", "index_of_{n}|find_{n}|position_{n}", "ints",
        "returns the index of the first {n} in {a}, or {m} if there is none",
        "for i, v in enumerate({a}):\n    if v == {n}:\n        return i\nreturn {m}", n=N, m=(-1, None)),
    family("insert_value", "{w[0]}_{n}|put_{n}|join_{n}", "ints", "returns {a} with {n} added at the {w[0]}",
        "return {w[1]}{a}{w[2]}", w=(("end", "", " + [{n}]"), ("start", "[{n}] + ", "")), n=N),
    family("value_map", "map_to_{p[0]}|{p[0]}_dict|dict_of_{p[0]}", "ints",
        "returns a dict from every number in {a} to its {p[0]}", "return {{v: v ** {p[1]} for v in {a}}}", p=POWER),
    family("frequency", "frequency|count_each|counts_of", "ints",
        "returns a dict that counts how often every item of {a} occurs, leaving out the {n}",
        "counts = {{}}\nfor v in {a}:\n    if v != {n}:\n        counts[v] = counts.get(v, 0) + 1\nreturn counts",
        n=SMALL),
    family("make_pairs", "pair_with_{n}|pairs_{n}|make_pairs", "ints",
        "returns a pair of the number and the number {o[0]} {n} for every number in {a}",
        "return [(v, v {o[1]} {n}) for v in {a}]", o=(("plus", "+"), ("minus", "-"), ("times", "*")), n=N),
)
