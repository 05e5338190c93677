"""Docstrings, comments and pages do not go back to words that readers stumble over; the counts may only fall."""

from __future__ import annotations

import words

# What is left are true places ("where"), names, and words that only look alike. Lower a number when it falls.
MOST = {
    "where": 68, "distributive a": 23, "forward without pass": 17, "behind": 25, "beside": 3, "lies, stands": 23,
    "is no": 27, "ask, told, said": 69, "draw": 1, "finalise, settle": 0, "open position": 0, "sure, likeliest": 10,
    "rival": 13, "twin, trial, lane, crossing": 5, "pieces, workplace, lesson": 0,
}  # fmt: skip


def test_no_avoided_word_becomes_more_frequent() -> None:
    found = words.counts()
    more = [f"{name}: {found[name]}, at most {most}" for name, most in MOST.items() if found[name] > most]
    assert not more, f"{more}; python tests/support/words.py --lines NAME shows them"
    assert MOST.keys() == words.AVOIDED.keys()


def test_the_count_reads_docstrings_comments_and_pages_and_no_code() -> None:
    module = '"""Says `where` it is, where it can."""\nwhere = "where"  # where it is\n'
    assert [line for line, text in words.prose_of_python(module) if "where" in text] == [1, 2]
    page = "where\n```sh\nwhere\n```\nwhere\n"
    assert [line for line, text in words.prose_of_page(page) if "where" in text] == [1, 5]
