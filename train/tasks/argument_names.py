"""Lists names for the first and the second argument of functions, by kind of argument.

Training prompts are rewritten with other names. Prompts of the splits that test rewriting get names that no prompt of
`train` has.
"""

from __future__ import annotations

ARGUMENTS = {
    "ints": (("xs", "values", "nums", "items", "numbers"), ("ys", "others", "second", "more")),
    "int": (("n", "x", "number", "value"), ("m", "y", "other")),
    "str": (("text", "s", "string", "line"), ("other",)),
    "words": (("words", "names", "parts", "strings"), ("others",)),
    "dict": (("table", "prices", "counts", "ages"), ("others",)),
    "word": (("name",), ("key", "name", "entry")),
    "pairs": (("pairs", "points", "rows", "data"), ("others",)),
}
# For rewritten prompts of `train`, and separate names for those of the `_surface` splits.
OTHER_ARGUMENTS = {
    "ints": ("arr", "a", "seq", "lst", "array", "ns", "my_list", "elements", "figures", "input_list"),
    "int": ("k0", "num", "val", "size", "amount", "integer", "nr", "z", "length", "input_number"),
    "str": ("word", "txt", "sentence", "title", "msg", "my_string", "phrase", "input_text"),
    "words": ("texts", "terms", "tokens", "my_words", "labels", "tags", "input_words"),
    "dict": ("mapping", "d", "stock", "scores", "my_dict", "marks", "ratings"),
    "word": ("wanted", "field", "label", "search"),
    "pairs": ("couples", "tuples", "coords", "my_pairs", "edges"),
}
HELD_OUT_ARGUMENTS = {
    "ints": ("vals", "integers", "sequence", "readings", "int_list", "list1"),
    "int": ("limit", "quantity", "my_number", "num1", "u"),
    "str": ("message", "input_string", "str1", "content"),
    "words": ("word_list", "entries", "phrases", "string_list"),
    "dict": ("lookup_table", "inventory", "points_by_name", "dict1"),
    "word": ("query", "item_name", "target"),
    "pairs": ("pair_list", "positions", "links"),
}
# Kinds with their own inputs, but another kind's names.
KINDS = {
    "some": "ints",
    "nat": "int",
    "few": "int",
    "long": "int",
    "turn": "str",
    "many": "ints",
    "terms": "words",
    "line": "str",
}
