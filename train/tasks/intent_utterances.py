"""Composes utterances of the task `intents`, with their right slots, from requests and the frames around them.

A family is a frame's marker and arrangement, or a request's phrase and form; `split_of_pair` gives its split.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .intent_frames import FORMS, GROUPS, OPENINGS, WHO, Group, split_of_pair
from .intent_phrases import INTENTS, NO_REQUEST, bend
from .intent_values import FIELDS, OPTIONAL, Slots, SpokenField

GIVEN = 0.45  # share of optional fields that a request has
NEAR = 0.7  # share of distractors of the same topic
SAME = 0.5  # share of a distractor's fields that are the request's own
SENTENCES = 0.3  # share of the forms that are sentences, if the intent has some
QUESTION = "\0"  # the end of a question: a question mark at the end of a sentence
MINE = re.compile(r"\b(me|my)\b")
NO_CONTENT = {"reminder_set": {"time", "when", "day"}, "message_send": set[str]()}
WITHOUT = ("retracted", "nothing", "told")  # groups whose utterances leave no request
MOVED = ("slot_after", "slot_kept")  # the right value follows the request

Words = dict[str, str]


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """A request: the intent, one of its phrases or sentences, and what its fields mean and how they are said."""

    intent: str
    phrase: str
    fields: Mapping[str, SpokenField]

    def list_words(self) -> Words:
        """Returns the words of each field; optional ones bring their space."""
        spaced = {name for name, said in self.fields.items() if name in OPTIONAL and said.words}
        return {name: " " * (name in spaced) + said.words for name, said in self.fields.items()}

    def list_slots(self) -> Slots:
        """Returns the values of the fields by slot."""
        return {slot: value for said in self.fields.values() for slot, value in said.slots.items()}


@dataclass(frozen=True, slots=True)
class Utterance:
    """Holds the text, the right intent and the slots.

    Attributes:
        kind: the name of its frame's group.
        family: group, marker and arrangement of its frame; for a plain request, intent, phrase and form.
    """

    text: str
    intent: str
    slots: Slots
    kind: str
    family: tuple[str, ...]


@cache
def list_fields(phrase: str) -> tuple[str, ...]:
    """Returns the names of a phrase's fields, in order."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(phrase) if name)


@cache
def list_pairs(intent: str, sentence: bool, split: str) -> tuple[tuple[int, str], ...]:
    """Returns the families of one request in a split: the place of a phrase or sentence, and a form."""
    said = INTENTS[intent].sentences if sentence else INTENTS[intent].phrases
    forms, offset = OPENINGS if sentence else FORMS, [*INTENTS].index(intent)
    return tuple(
        (row, form)
        for row in range(len(said))
        for column, form in enumerate(forms)
        if split_of_pair(row, column, offset) == split
    )


@cache
def list_frames(split: str) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """Returns the families of frames in a split, by group: markers and arrangements."""
    return {
        group.name: tuple(
            (marker, arrangement)
            for row, marker in enumerate(group.markers)
            for column, arrangement in enumerate(group.arrangements)
            if split_of_pair(row, column, offset) == split
        )
        for offset, group in enumerate(GROUPS)
    }


def ask(rng: random.Random, intent: str, phrase: str, near: SampledRequest | None = None) -> SampledRequest:
    """Fills a phrase's fields, some as those of the request `near`."""
    fields = {}
    for name in list_fields(phrase):
        if near and name in near.fields and name != "clause" and rng.random() < SAME:
            fields[name] = near.fields[name]
        elif name == "clause":
            fields[name] = SpokenField({}, sample_content(rng, intent))
        elif name in OPTIONAL and rng.random() >= GIVEN:
            fields[name] = SpokenField({}, "")
        else:
            fields[name] = FIELDS[name](rng)
    return SampledRequest(intent, phrase, fields)


def sample_content(rng: random.Random, of: str) -> str:
    """Samples what a reminder or a message is about: a phrase of another intent, none of whose slots count."""
    while True:
        intent = rng.choice([*INTENTS])
        phrase = rng.choice(INTENTS[intent].phrases)
        if intent not in NO_CONTENT and not MINE.search(phrase) and not NO_CONTENT[of] & {*list_fields(phrase)}:
            made = ask(rng, intent, phrase)
            return phrase.format_map(made.list_words())


def ask_any(rng: random.Random, intent: str, near: SampledRequest | None = None, plain: bool = False) -> SampledRequest:
    """Samples a request of an intent. plain: without words such as "my", so that it can be said of somebody else."""
    phrases = [each for each in INTENTS[intent].phrases if not (plain and MINE.search(each))]
    return ask(rng, intent, rng.choice(phrases), near)


def sample_other_intent(rng: random.Random, *taken: str) -> str:
    """Samples the intent of a distractor, mostly of the first one's topic."""
    topic = INTENTS[taken[0]].topic
    near = [name for name in INTENTS if name not in taken and INTENTS[name].topic == topic]
    every = [name for name in INTENTS if name not in taken]
    return rng.choice(near if near and rng.random() < NEAR else every)


def bend_request(asked: SampledRequest, suffix: str) -> Words:
    """Returns a request as a phrase, a gerund and a participle, under names that end in `suffix`."""
    gerund, participle = bend(asked.phrase)
    words = asked.list_words()
    made = {"do": asked.phrase, "doing": gerund, "done": participle}
    return {f"{name}{suffix}": phrase.format_map(words) for name, phrase in made.items()}


def say(
    rng: random.Random, split: str, intent: str, near: SampledRequest | None = None
) -> tuple[SampledRequest, str, tuple[str, ...]]:
    """Samples a request in a form of this split; returns it, the form with the phrase in it, and its family."""
    sentence = bool(INTENTS[intent].sentences) and rng.random() < SENTENCES
    row, form = rng.choice(list_pairs(intent, sentence, split))
    phrase = (INTENTS[intent].sentences if sentence else INTENTS[intent].phrases)[row]
    if sentence:
        whole = form.replace("{say}", phrase)
    else:
        whole = form.replace("{doing}", bend(phrase)[0]).replace("{do}", phrase)
    whole = re.sub(r"\?$", QUESTION, whole)
    return ask(rng, intent, phrase, near), whole, (intent, phrase, form)


def draw_utterance(split: str, rng: random.Random) -> Utterance:
    """Samples an utterance of `train`, `valid` or `test`."""
    group = rng.choices(GROUPS, [each.weight for each in GROUPS])[0]
    if group.name == "plain":
        asked, whole, family = say(rng, split, rng.choice([*INTENTS]))
        return Utterance(
            finish(whole.format_map(asked.list_words())), asked.intent, asked.list_slots(), group.name, family
        )
    marker, arrangement = rng.choice(list_frames(split)[group.name])
    family = (group.name, marker, arrangement)
    if group.name.startswith("slot_"):
        return correct_slot(split, rng, group, marker, arrangement)
    asked, words = fill_frame(split, rng, arrangement)
    text = finish(arrangement.format_map({"m": marker, "M": capitalize(marker), **words}))
    if group.name in WITHOUT:
        return Utterance(text, NO_REQUEST, {}, group.name, family)
    return Utterance(text, asked.intent, asked.list_slots(), group.name, family)


def fill_frame(split: str, rng: random.Random, arrangement: str) -> tuple[SampledRequest, Words]:
    """Samples a request and its distractors; returns the request, and the words of a frame's fields except markers."""
    names, intent, words = {*list_fields(arrangement)}, rng.choice([*INTENTS]), {"who": rng.choice(WHO)}
    asked, whole, _ = say(rng, split, intent)
    if "say" in names:
        words["say"] = whole.format_map(asked.list_words())
    else:
        asked = ask_any(rng, asked.intent)
    words |= bend_request(asked, "")
    taken = [asked.intent]
    for suffix in "23":
        other = ask_any(rng, sample_other_intent(rng, *taken), asked, plain=f"done{suffix}" in names)
        taken.append(other.intent)
        words |= bend_request(other, suffix)
        if f"say{suffix}" in names:
            second, said, _ = say(rng, split, other.intent, asked)
            words[f"say{suffix}"] = said.format_map(second.list_words())
    return asked, words


def correct_slot(split: str, rng: random.Random, group: Group, marker: str, arrangement: str) -> Utterance:
    """Samples an utterance that says a wrong and the right value of one field."""
    while True:
        asked, whole, _ = say(rng, split, rng.choice([*INTENTS]))
        names = [name for name, said in asked.fields.items() if said.slots]
        if group.name in MOVED and "clause" in asked.fields:
            continue  # the corrected slot could be one of the clause
        if group.name in MOVED and asked.fields.get("where", SpokenField({}, "")).words:
            names = [name for name in names if name == "where"]
        if names:
            break
    name = rng.choice(names)
    right = asked.fields[name]
    while (wrong := FIELDS[name](rng)).slots == right.slots:
        pass
    words = asked.list_words()
    space = " " if name in OPTIONAL else ""
    shown = {"m": marker, "M": capitalize(marker), "w": wrong.words, "r": right.words}
    if group.name in MOVED:
        shown |= {"say": whole.format_map(words), "wrong": whole.format_map({**words, name: space + wrong.words})}
        text = arrangement.format_map(shown)
    else:
        text = whole.format_map({**words, name: space + arrangement.format_map(shown)})
    return Utterance(finish(text), asked.intent, asked.list_slots(), group.name, (group.name, marker, arrangement))


def capitalize(text: str) -> str:
    """Returns a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def finish(text: str) -> str:
    """Returns a text as it is written, with correct spaces, commas and sentence ends, and capitals after them."""
    text = re.sub(rf"{QUESTION}(?:\.(?!\.)|$)", "?", text).replace(QUESTION, "")
    text = re.sub(r"(?:\s*,|\s-)+(?=\s*(?:[.?!,):]|-\s|$))", "", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"(^\"?|(?<!\.\.)[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), text)
    text = re.sub(r"\bi\b", "I", text)
    return text if text.endswith((".", "?")) else f"{text}."
