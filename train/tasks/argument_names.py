"""Lists names for the first and the second argument of functions, by kind of argument, and invents others.

Training prompts are rewritten with other names, and many have invented ones, which nobody can guess: from names that it
can guess a model does not learn to copy. Prompts of the splits that test rewriting get names that no prompt of `train`
has.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from keyword import iskeyword

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

# Of these, names are invented that look like words, and collide with the beginnings of others as people's names do.
CONSONANTS = (
    *"bcdfghjklmnpqrstvwxz",
    "bl",
    "ch",
    "cl",
    "cr",
    "dr",
    "fr",
    "gr",
    "ph",
    "pl",
    "pr",
    "qu",
    "sh",
    "st",
    "th",
    "tr",
)
VOWELS = (*"aeiou", "ea", "io", "ou")
ENDS = ("", "", "", "ck", "d", "l", "m", "n", "ng", "nt", "r", "s", "t", "x")
FORMS = (*6 * ("{}",), "{}s", "{}ing", "{}_{}", "{}_list", "{}_value", "my_{}", "all_{}", "input_{}", "{}1", "{}2")
HELD_OUT = frozenset(name for names in HELD_OUT_ARGUMENTS.values() for name in names)
KNOWN = tuple(
    name
    for names in (*(first + second for first, second in ARGUMENTS.values()), *OTHER_ARGUMENTS.values())
    for name in names
)


def invent_name(rng: random.Random, taken: Collection[str]) -> str:
    """Returns a name that is none of `taken`, no word of Python and not held out."""
    while True:
        form = rng.choice(FORMS)
        name = form.format(*(_invent_word(rng) for _ in range(form.count("{}"))))
        if name not in taken and name not in HELD_OUT and not iskeyword(name):
            return name


def _invent_word(rng: random.Random) -> str:
    """Returns one to three syllables, or the start of a known name with or without some."""
    start, syllables = "", rng.choices((1, 2, 3), (5, 4, 1))[0]
    if rng.random() < 0.5:
        known = rng.choice(KNOWN)
        start, syllables = known[: rng.randint(1, len(known))], rng.randint(0, 2)
    return start + "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(ENDS) for _ in range(syllables))
