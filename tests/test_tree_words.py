"""Docstrings, comments and pages do not go back to words that readers stumble over; the counts may only fall."""

from __future__ import annotations

import words

# What is left are true places ("where"), names, and words that only look alike. Lower a number when it falls.
MOST = {
    "where": 23, "distributive a": 0, "forward without pass": 12, "behind": 0, "beside": 0, "lies, stands": 4,
    "is no": 25, "ask, told, said": 13, "draw": 0, "finalise, settle": 0, "open position": 0, "sure, likeliest": 0,
    "rival": 5, "twin, trial, lane, crossing": 3, "pieces, workplace, lesson": 0,
}  # fmt: skip


def test_no_avoided_word_becomes_more_frequent() -> None:
    found = words.counts()
    more = [f"{name}: {found[name]}, at most {most}" for name, most in MOST.items() if found[name] > most]
    assert not more, f"{more}; python tests/support/words.py --lines NAME shows them"
    assert MOST.keys() == words.AVOIDED.keys()


def test_the_count_reads_docstrings_comments_and_pages_and_no_code() -> None:
    module = '"""Says `where` it is, where it can."""\nwhere = "where"  # where it is\n'
    assert [line for line, text in words.read_python_prose(module) if "where" in text] == [1, 2]
    page = "where\n```sh\nwhere\n```\nwhere\n"
    assert [line for line, text in words.read_page_prose(page) if "where" in text] == [1, 5]


def test_the_count_reads_help_and_error_texts_and_no_values_in_them() -> None:
    module = (
        'HELP = {"a": "where it runs"}\noption("--b", help="where it is", metavar="WHERE")\n'
        'raise UserError(f"where {where[\'where\']} is")\nprint("where")\n'
    )
    found = [(line, text) for line, text in words.read_python_texts(module) if "where" in text]
    assert found == [(1, "where it runs"), (2, "where it is"), (3, "where ")]
