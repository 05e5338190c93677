"""Lists all families of the code task that models are trained on."""

from __future__ import annotations

from .function_families_lists import LISTS
from .function_families_others import NUMBERS, TABLES, TWO_LISTS, WORDS

TRAINING = LISTS + TWO_LISTS + NUMBERS + WORDS + TABLES
