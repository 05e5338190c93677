"""Invents words that a model cannot guess. Given words that it can guess, it does not learn to copy from the prompt."""

from __future__ import annotations

import random

CONSONANT_CLUSTERS, FINAL_CONSONANTS = "bl ch cl cr dr fr gr ph pl pr qu sh st th tr", "ck d l m n ng nt r s t x"
STARTS = ("", *"bcdfghjklmnpqrstvwxz", *CONSONANT_CLUSTERS.split())
VOWELS = (*"aeiou", "ea", "io", "ou")
ENDS = ("", "", "", *FINAL_CONSONANTS.split())


def invent_syllables(count: int, rng: random.Random) -> str:
    """Returns `count` random syllables in lower case."""
    return "".join(rng.choice(STARTS) + rng.choice(VOWELS) + rng.choice(ENDS) for _ in range(count))
