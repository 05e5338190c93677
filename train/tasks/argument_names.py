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
# Names of the splits that test rewriting.
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
# For rewritten prompts of `train`: nouns, each written in all of FORMS, so that a model learns to copy names that it
# has never seen. None is a variable of an answer.
NOUNS = {
    "ints": """
        a arr array seq lst ns elements figures amounts sizes lengths weights heights widths digits levels steps
        days years hours minutes costs fees bids votes goals daily_results samples measures temps distances speeds
        angles codes ids ranks grades totals changes gains deltas offsets indices bounds primes squares sums limits
        heads b c
        cells nodes bits queue stack buffer batch series column row_values draws rolls throws dice cards coins bills
        """,
    "int": """
        num val size amount integer nr z length age weight height width depth level step day year hour minute cost fee
        bid vote goal temp distance speed angle code rank grade offset index bound start end first base top digit bits
        max_size k0 c d e g h r t factor divisor rate score budget capacity position seed stop shift turns rounds
        """,
    "str": """
        word txt sentence title msg phrase body note letter remark comment header footer label caption subject quote
        verse chars letters paragraph document page_text raw reply answer question prompt chat post slug path url
        email address city country brand color command query_text source target_text prefix_text code_line b t z st
        """,
    "words": """
        texts terms tokens labels tags lines sentences titles messages comments notes captions cities countries brands
        colors fruits animals files folders paths users people players teams songs books films dishes streets towns
        verses chapters topics hobbies tools toys plants rivers months weekdays shop_names ws ss a arr lst seq options
        """,
    "dict": """
        mapping d stock scores marks ratings lookup index score_table weights heights sizes costs fees votes goals
        levels budgets wages grades totals_by_key amounts balances shares hours days distances speeds populations
        quantities
        store catalog menu register record cart basket library bank rates limits orders sales dct dic mp
        """,
    "word": """
        wanted field label search term token item title city country brand color fruit animal file user person player
        team song book film dish street town topic hobby tool toy plant river month weekday option code tag t
        """,
    "pairs": """
        couples tuples coords edges matches spans ranges moves wires segments records sold_items entries_read
        samples visits trades bids orders sales steps stops games rounds ties bonds twins lines cells a arr
        lst seq ps
        """,
}
FORMS = (*4 * ("{}",), "my_{}", "input_{}", "the_{}", "new_{}", "all_{}", "old_{}", "given_{}", "{}_in", "{}1", "{}2")
OTHER_ARGUMENTS = {
    kind: tuple(
        name for noun in nouns.split() for form in FORMS if (name := form.format(noun)) not in HELD_OUT_ARGUMENTS[kind]
    )
    for kind, nouns in NOUNS.items()
}
