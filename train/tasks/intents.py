"""Defines the task `intents`: the prompt is an utterance to a household's assistant, the answer its intent and slots.

An answer is compact JSON with the same fields for all intents: the intent and every slot, in the order of FIELDS; a
slot without a value is null. So one form fits all utterances, each field is a closed list or a bounded integer, and a
model can predict all of them at once. What the content of a message or reminder mentions is not a slot of the request.
The utterances are sampled from a grammar, each of whose families is in one split (`intent_frames`). A `_surface` split
has one change of writing per utterance, which `group` names.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from runtime.decisions.form import Field, Form
from runtime.errors import UserError

from . import surface
from .intent_phrases import INTENTS, NAMES, NO_REQUEST
from .intent_utterances import list_fields, sample_utterance
from .intent_values import FIELDS as PHRASE_FIELDS
from .intent_values import OPTIONAL, SLOTS
from .problem import Problem

SPLITS = ("train", "valid", "test", "valid_surface", "test_surface")
FIELDS = ("intent", *SLOTS)
# Pre-tokenizer. In answers, a key with the brace or comma before it can be one token, and so can a value; a text's
# quotation marks belong to it. In utterances, each word, digit and other character is separate, except that a number
# at the start of a line, before a comma, can be one token.
SPLIT_PATTERN = r'[{,]"[a-z]+":|"[a-z]+(?:_[a-z]+)*"(?=[,}]|$)|(?:(?<=":)|^)\d+(?=[,}]|$)| ?[A-Za-z]+|\d|[\s\S]'
MAX_ATTEMPTS = 10_000  # at a new utterance
LONG_WORD = re.compile(r"[a-z]{5,}")  # long enough to be readable with a typo
SHARES = ("exact", "intent_accuracy", "slots_accuracy", "valid_json")  # figures that are shares of the problems

Values = dict[str, str | int | None]


def write_answer(intent: str, slots: Mapping[str, str | int]) -> str:
    """Returns the compact JSON of an intent and its slots."""
    return json.dumps({"intent": intent, **{slot: slots.get(slot) for slot in SLOTS}}, separators=(",", ":"))


def list_slots(intent: str) -> tuple[set[str], set[str]]:
    """Returns the slots that an intent always has, and those that it may have."""
    phrases = (*INTENTS[intent].phrases, *INTENTS[intent].sentences) if intent != NO_REQUEST else ()
    always, ever = set(SLOTS), set[str]()
    for phrase in phrases:
        names = [name for name in list_fields(phrase) if name != "clause"]
        known = {name: PHRASE_FIELDS[name](random.Random(0)).slots.keys() for name in names}
        ever |= {slot for slots in known.values() for slot in slots}
        always &= {slot for name, slots in known.items() if name not in OPTIONAL for slot in slots}
    return always & ever, ever


def make_schema(intent: str | None = None) -> dict[str, Any]:
    """Returns the JSON schema of all answers, or of one intent's answers, which have null in other intents' slots."""
    always, ever = list_slots(intent) if intent else (set[str](), {*SLOTS})
    properties: dict[str, Any] = {"intent": {"enum": [intent] if intent else [*NAMES]}}
    for slot, values in SLOTS.items():
        some: dict[str, Any] = (
            {"type": "integer", "minimum": values[0], "maximum": values[-1]}
            if isinstance(values, range)
            else {"enum": [*values]}
        )
        either = [*([some] if slot in ever else []), *([] if slot in always else [{"type": "null"}])]
        properties[slot] = either[0] if len(either) == 1 else {"anyOf": either}
    return {"type": "object", "properties": properties, "required": [*FIELDS], "additionalProperties": False}


def make_form() -> Form:
    """Returns the form of all answers; a field's values are JSON texts, and the last value of each slot is null."""
    values = {"intent": [*NAMES], **{slot: [*known, None] for slot, known in SLOTS.items()}}
    parts = list[str | Field]()
    for name, known in values.items():
        parts += [f'{"," if parts else "{"}"{name}":', Field((name,), tuple(map(json.dumps, known)))]
    return Form((*parts, "}"))


def misspell(text: str, rng: random.Random) -> str:
    """Swaps, drops or doubles a letter inside one of the longer words."""
    found = [*LONG_WORD.finditer(text)]
    if not found:
        return text
    word = rng.choice(found)
    place, how = rng.randrange(word.start() + 1, word.end() - 1), rng.randrange(3)
    middle = ("", 2 * text[place], text[place + 1] + text[place])[how]
    return text[:place] + middle + text[place + 1 + (how == 2) :]


def spell_numbers(text: str, rng: random.Random) -> str:
    """Writes numbers as words, unless the text has times or percent signs, which are not written like that."""
    return text if re.search(r"\d[:%]", text) else surface.spell_numbers(text, rng)


def drop_marks(text: str, rng: random.Random) -> str:
    """Removes what speech does not have: commas, stops, dashes, quotation marks, brackets."""
    return re.sub(r"\s+", " ", re.sub(r"""[,.?!"()]|:(?!\d)| -(?= )""", "", text)).strip()


PROSE: Mapping[str, Callable[[str, random.Random], str]] = {
    "typo": misspell, **surface.PROSE, "numbers": spell_numbers, "no_marks": drop_marks, **surface.EDGES
}  # fmt: skip
CHANGES = tuple(PROSE)


def rewrite(problem: Problem, changes: Collection[str], rng: random.Random, split: str) -> Problem:
    """Returns the problem after changes to its utterance."""
    return replace(problem, prompt=surface.rewrite_text(problem.prompt, changes, rng, PROSE))


def sample_problems(split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of a split; the same arguments always give the same problems.

    Only `train` may repeat an utterance within one call. `group` names the kind of frame. Raises UserError for an
    unknown split, or if no new utterance is found.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    plain = split.removesuffix("_surface")
    return surface.rewrite_split(split, seed, _sample_rewritable_problems(plain, count, seed), CHANGES)


def _sample_rewritable_problems(split: str, count: int, seed: int) -> Iterator[surface.RewritableProblem]:
    rng, seen = random.Random(f"{split}-{seed}"), set[str]()
    for _ in range(count):
        for _ in range(MAX_ATTEMPTS):
            utterance = sample_utterance(split, rng)
            if utterance.text not in seen:
                break
        else:
            raise UserError(f"no new utterance in {MAX_ATTEMPTS} attempts for the split {split!r}; request fewer")
        if split != "train":
            seen.add(utterance.text)
        problem = Problem(utterance.text, write_answer(utterance.intent, utterance.slots), utterance.kind)
        yield surface.RewritableProblem(problem, partial(rewrite, problem))


def read_answer(text: str) -> Values | None:
    """Returns the fields of an answer, in any order and spacing; None if it does not fit the schema."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.keys() != {*FIELDS} or not _is_value_of(values["intent"], NAMES):
        return None
    return (
        values
        if all(values[slot] is None or _is_value_of(values[slot], known) for slot, known in SLOTS.items())
        else None
    )


def _is_value_of(value: object, known: Sequence[str] | range) -> bool:
    value_type = int if isinstance(known, range) else str  # exact types, as True == 1
    return type(value) is value_type and value in known


def grade(problem: Problem, text: str) -> bool:
    """Returns whether an answer has the right intent and the right slots."""
    return read_answer(text) == read_answer(problem.answer)


def measure(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Returns shares of the problems, by name, whose answers are right or fit the schema.

    The shares are: all fields right (`exact`), intent right, all slots right, answer within the schema, and each slot
    right. An answer outside the schema has nothing right.
    """
    right = [json.loads(problem.answer) for problem in problems]
    given = [read_answer(text) for text in texts]
    pairs = [(one or {}, other) for one, other in zip(given, right, strict=True)]
    same = {field: [one.get(field, "") == other[field] for one, other in pairs] for field in FIELDS}
    slots = [all(each) for each in zip(*(same[slot] for slot in SLOTS), strict=True)]
    verdicts = {
        "exact": [a and b for a, b in zip(slots, same["intent"], strict=True)],
        "intent_accuracy": same["intent"],
        "slots_accuracy": slots,
        "valid_json": [one is not None for one in given],
        **{f"slot_{slot}": same[slot] for slot in SLOTS},
    }
    return {name: round(sum(each) / len(each), 5) for name, each in verdicts.items()}
