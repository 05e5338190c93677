"""Lists the families without a constant, which a visitor of the code task tries first; only `train` has them."""

# one entry is a line or two here; one argument per line would make it three times as long
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from .function_family import ARITHMETIC, COMPARISONS, EXTREME, PARITY, POWER, make_family

SIMPLE = (
    make_family("of_two", "add|combine|{o[0]}|{o[0]}_of_two|get_{o[0]}", "int int", "returns the {o[0]} of {a} and {b}",
        "return {a} {o[1]} {b}", o=ARITHMETIC),
    make_family("extreme_of_two", "{e[1]}_of_two|{e[0]}|bigger", "int int", "returns the {e[0]} of {a} and {b}", "return {e[1]}({a}, {b})",
        e=(*EXTREME, ("larger", "max"), ("smaller", "min"))),
    make_family("compare_two", "is_{c[2]}|compare|check", "int int", "checks whether {a} is {c[0]} {b}", "return {a} {c[1]} {b}",
        c=COMPARISONS),
    make_family("power_one", "{p[0]}|{p[0]}_of|get_{p[0]}", "int", "returns the {p[0]} of {a}", "return {a} ** {p[1]}", p=POWER),
    make_family("change_one", "{p[2]}|{p[2]}_of|make_{p[2]}", "int", "returns {p[0]}", "return {p[1]}",
        p=(("the absolute value of {a}", "abs({a})", "absolute"), ("the negative of {a}", "-{a}", "negate"), ("twice {a}", "{a} * 2", "double"), ("{a} times 2", "{a} * 2", "double"), ("half of {a}, rounded down", "{a} // 2", "half"))),
    make_family("parity_one", "is_{p[0]}|{p[0]}|check_{p[0]}", "int", "checks whether {a} is {p[0]}", "return {a} % 2 == {p[1]}", p=PARITY),
    make_family("sign_one", "is_{p[0]}|{p[0]}|check_sign", "int", "checks whether {a} is {p[0]}", "return {a} {p[1]} 0",
        p=(("positive", ">"), ("negative", "<"), ("zero", "=="))),
    make_family("fold", "{p[2]}|get_{p[2]}|{p[2]}_of_list|{p[2]}_numbers", "ints", "returns {p[0]} {a}", "return {p[1]}({a})",
        p=(("the sum of", "sum", "total"), ("the sum of the numbers in", "sum", "sum_all"), ("the length of", "len", "length"), ("the number of items in", "len", "count"), ("the number of numbers in", "len", "size"))),
    make_family("extreme", "{e[0]}|find_{e[0]}|{e[1]}_of|get_{e[1]}", "nonempty_ints", "returns the {e[0]} number in {a}", "return {e[1]}({a})", e=EXTREME),
    make_family("product_all", "product|multiply|multiply_all", "ints", "returns the product of the numbers in {a}",
        "result = 1\nfor v in {a}:\n    result *= v\nreturn result"),
    make_family("average", "mean|average|get_average", "nonempty_ints", "returns the {p} of {a}", "return sum({a}) / len({a})",
        p=("average", "mean", "average of the numbers")),
    make_family("turn", "reverse|reverse_text|backwards", "str", "reverses {a}", "return {a}[::-1]"),
    make_family("turn_list", "reverse|reverse_list|backwards", "ints", "{p} {a} in reverse order", "return {a}[::-1]",
        p=("returns the items of", "returns")),
    make_family("one_item", "{p[0]}|{p[0]}_item|get_{p[0]}", "nonempty_ints", "returns the {p[0]} item of {a}", "return {a}[{p[1]}]",
        p=(("first", "0"), ("last", "-1"))),
    make_family("sort_plain", "sort|sort_list|sort_numbers", "ints", "{p} {a}", "return sorted({a})", p=("sorts", "sorts the numbers in")),
    make_family("distinct", "unique|distinct|remove_duplicates", "ints", "{p[0]}", "return sorted(set({a}))",
        p=(("returns the sorted distinct numbers in {a}",), ("removes duplicates from {a} and sorts it",))),
    make_family("is_empty", "is_empty|empty|has_none", "ints", "checks whether {a} is empty", "return len({a}) == 0"),
    make_family("case_one", "{p[1]}|to_{p[1]}|{p[1]}case|shout", "str", "{p[0]}", "return {a}.{p[1]}()",
        p=(("returns {a} in upper case", "upper"), ("converts {a} to upper case", "upper"), ("returns {a} in lower case", "lower"), ("converts {a} to lower case", "lower"), ("capitalizes {a}", "capitalize"))),
    make_family("text_size", "length|size|count_{p[1]}", "str", "returns the {p[0]} {a}", "return len({a})",
        p=(("length of", "letters"), ("number of characters in", "characters"))),
    make_family("word_count", "count_words|word_count|words", "long_text", "counts the words in {a}", "return len({a}.split())"),
    make_family("vowels", "count_vowels|vowels|vowel_count", "str", "counts the vowels in {a}",
        "count = 0\nfor ch in {a}:\n    if ch in 'aeiou':\n        count += 1\nreturn count"),
    make_family("join_two", "concat|join|add_texts", "str str", "returns {a} followed by {b}", "return {a} + {b}"),
    make_family("greet", "greet|hello|welcome", "str", "returns '{p}, ' followed by {a}", "return '{p}, ' + {a}", p=("Hello", "Hi", "Welcome", "Dear")),
    make_family("keys", "{p[0]}_of|get_{p[0]}|sorted_{p[0]}", "dict", "returns the sorted {p[0]} of {a}", "return sorted({a}{p[1]})",
        p=(("keys", ""), ("values", ".values()"))),
    make_family("square_list", "squares|{p[0]}_all|{p[1]}_list", "ints", "returns a list of the {p[1]} of the numbers in {a}", "return [v ** {p[2]} for v in {a}]",
        p=(("square", "squares", 2), ("cube", "cubes", 3))),
)
