"""Lists names of functions' arguments by kind of argument, and invents names.

Many training prompts have invented names: given only names that it can guess, a model does not learn to copy them from
the prompt. Rewritten training prompts have names of OTHER_ARGUMENTS. Rewritten prompts of the `_surface` splits have
names of HELD_OUT_ARGUMENTS, which no training prompt has.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from keyword import iskeyword
from string import ascii_lowercase

from .invented_words import invent_syllables

# Names of the first argument, and of the second.
ARGUMENTS = {
    "ints": (("xs", "values", "nums", "items", "numbers"), ("ys", "others", "second", "more")),
    "int": (("n", "x", "number", "value"), ("m", "y", "other")),
    "str": (("text", "s", "string", "line"), ("other",)),
    "words": (("words", "names", "parts", "strings"), ("others",)),
    "dict": (("table", "prices", "counts", "ages"), ("others",)),
    "word": (("name",), ("key", "name", "entry")),
    "pairs": (("pairs", "points", "rows", "data"), ("others",)),
}
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
# Kinds whose arguments are named like those of another kind.
NAMED_LIKE = {
    "nonempty_ints": "ints",
    "long_ints": "ints",
    "natural": "int",
    "small_natural": "int",
    "digits": "int",
    "maybe_palindrome": "str",
    "long_text": "str",
    "long_words": "words",
}

NAME_FORMS = (*6 * ("{}",), "{}s", "{}ing", "{}_{}", "{}_list", "{}_value", "my_{}", "all_{}", "input_{}", "{}1", "{}2")
LETTER_SHARE = 0.1  # share of the invented names that are a single letter
ANSWER_WORDS = "in if for not return sum len max min sorted range enumerate result count total"
# Many invented names begin like a word of the answers, as do names that people choose.
BEGINNINGS = (
    *ANSWER_WORDS.split(),
    *(name for pools in ARGUMENTS.values() for pool in pools for name in pool),
    *(name for pool in OTHER_ARGUMENTS.values() for name in pool),
)
HELD_OUT = frozenset(name for pool in HELD_OUT_ARGUMENTS.values() for name in pool)


def invent_name(rng: random.Random, taken: Collection[str]) -> str:
    """Returns a random name that is not in `taken`, not a keyword of Python and not held out."""
    while True:
        form = rng.choice(NAME_FORMS)
        name = form.format(*(_invent_word(rng) for _ in range(form.count("{}"))))
        if rng.random() < LETTER_SHARE:
            name = rng.choice(ascii_lowercase)
        if name not in taken and name not in HELD_OUT and not iskeyword(name):
            return name


def _invent_word(rng: random.Random) -> str:
    """Returns one to three random syllables, or the beginning of a word of the answers and up to two syllables."""
    start, syllables = "", rng.choices((1, 2, 3), (5, 4, 1))[0]
    if rng.random() < 0.5:
        word = rng.choice(BEGINNINGS)
        start, syllables = word[: rng.randint(1, len(word))], rng.randint(0, 2)
    return start + invent_syllables(syllables, rng)
