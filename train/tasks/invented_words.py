"""Invents words that nobody can guess, of syllables: from words that it can guess a model does not learn to copy."""

from __future__ import annotations

import random

CLUSTERS, FINALS = "bl ch cl cr dr fr gr ph pl pr qu sh st th tr", "ck d l m n ng nt r s t x"
CONSONANTS = ("", *"bcdfghjklmnpqrstvwxz", *CLUSTERS.split())
VOWELS = (*"aeiou", "ea", "io", "ou")
ENDS = ("", "", "", *FINALS.split())


def invent_syllables(count: int, rng: random.Random) -> str:
    """Returns `count` syllables in lower case."""
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(ENDS) for _ in range(count))
