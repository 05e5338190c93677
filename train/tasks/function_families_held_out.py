"""Lists the families of the code task that only the split `test_templates` has."""

# one entry is a few lines here; one argument per line would make it three times as long
# fmt: off
from __future__ import annotations

from .function_family import ANY_WORDS, COMPARISONS, DIVISIBLE, LETTERS, PARITY, POWER, SMALL, N, make_family

HELD_OUT = (
    make_family("unseen_parity_powers", "sum_{q[0]}_{p[0]}|total_{p[0]}|add_{p[0]}", "ints",
        "returns the sum of the {p[0]} of every {q[0]} number in {a}",
        "total = 0\nfor v in {a}:\n    if v % 2 == {q[1]}:\n        total += v ** {p[1]}\nreturn total", p=POWER,
        q=PARITY),
    make_family("unseen_count_divisible", "count_multiples|count_by_{n}|how_many_by_{n}", "ints",
        "counts the numbers in {a} that are {d[0]} by {n}",
        "count = 0\nfor v in {a}:\n    if v % {n} {d[1]} 0:\n        count += 1\nreturn count", d=DIVISIBLE, n=N),
    make_family("unseen_product_compare", "product_{c[2]}|multiply_{c[2]}_{n}|times_{c[2]}", "ints",
        "returns the product of the numbers in {a} that are {c[0]} {n}",
        "result = 1\nfor v in {a}:\n    if v {c[1]} {n}:\n        result *= v\nreturn result", c=COMPARISONS, n=N),
    make_family("unseen_keep_scale", "keep_and_scale|scale_{c[2]}|times_{m}_{c[2]}", "ints",
        "keeps the numbers in {a} that are {c[0]} {n} and multiplies each by {m}",
        "return [v * {m} for v in {a} if v {c[1]} {n}]", c=COMPARISONS, n=N, m=N),
    make_family("unseen_count_start", "count_{m[0]}_{x}|how_many_{m[0]}|number_{m[0]}_{x}", "words",
        "counts the words in {a} that {m[0]} with the letter '{x}'",
        "count = 0\nfor w in {a}:\n    if w.{m[1]}('{x}'):\n        count += 1\nreturn count", x=LETTERS,
        m=(("start", "startswith"), ("end", "endswith"))),
    make_family("unseen_letter_map", "letter_dict|map_{x}|counts_of_{x}", "words",
        "returns a dict from every word in {a} to how often the letter '{x}' occurs in it",
        "result = {{}}\nfor w in {a}:\n    result[w] = w.count('{x}')\nreturn result", x=LETTERS),
    make_family("unseen_zip_distance", "distances|zip_distance|pairwise_distance", "ints ints",
        "returns the distance between every two items at the same index of {a} and {b}, plus {n}",
        "return [abs(p - q) + {n} for p, q in zip({a}, {b})]", n=N),
    make_family("unseen_sum_first", "sum_first_{n}|total_first|add_first_{n}", "ints",
        "returns the sum of the first {n} items of {a}", "return sum({a}[:{n}])", n=SMALL),
    make_family("unseen_all_divisible", "{q[1]}_by_{n}|check_{q[1]}|is_{q[1]}_by_{n}", "ints",
        "checks whether {q[0]} in {a} is {d[0]} by {n}", "return {q[1]}(v % {n} {d[1]} 0 for v in {a})", q=ANY_WORDS,
        d=DIVISIBLE, n=SMALL),
    make_family("unseen_keep_pairs", "filter_pairs|keep_pairs|pairs_{c[2]}_{n}", "pairs",
        "keeps the pairs in {a} whose {m[0]} item is {c[0]} {n}", "return [p for p in {a} if p[{m[1]}] {c[1]} {n}]",
        m=(("first", 0), ("second", 1)), c=COMPARISONS, n=N),
    make_family("unseen_digit_filter", "some_digits|digits_{c[2]}_{n}|sum_digits_{c[2]}", "digits",
        "returns the sum of the digits of {a} that are {c[0]} {n}",
        "total = 0\nfor ch in str({a}):\n    if int(ch) {c[1]} {n}:\n        total += int(ch)\nreturn total",
        c=COMPARISONS, n=(3, 4, 5, 6, 7)),
)
