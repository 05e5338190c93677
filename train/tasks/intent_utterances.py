"""Composes utterances of the task `intents` and their right slots, of requests and the frames around them.

A family is a frame's marker and arrangement, or a request's phrase and form; `find_pair_split` returns its split.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .intent_frames import FORMS, GROUPS, OPENINGS, SPEAKERS, FrameGroup, find_pair_split
from .intent_phrases import INTENTS, NO_REQUEST, inflect
from .intent_values import FIELDS, OPTIONAL, Slots, SpokenField

OPTIONAL_SHARE = 0.45  # share of the optional fields that a request has
SAME_TOPIC_SHARE = 0.7  # share of the distractors, requests that are not wanted, that are of the same topic
COPIED_SHARE = 0.5  # share of a distractor's fields that are copied from the request
SENTENCE_SHARE = 0.3  # share of the requests that are sentences and not phrases, if the intent has sentences
QUESTION_END = "\0"  # becomes a question mark if a sentence ends there, see `punctuate`
FIRST_PERSON = re.compile(r"\b(me|my)\b")
# Intents with the field `clause`, and the fields that a phrase must not have to fill it.
BARRED_CLAUSE_FIELDS = {"reminder_set": {"time", "when", "day"}, "message_send": set[str]()}
GROUPS_WITHOUT_REQUEST = ("retracted", "nothing", "told")
GROUPS_WITH_VALUE_AFTER = ("slot_after", "slot_kept")  # the right value comes after the request

Words = dict[str, str]


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """Holds an intent, one of its phrases or sentences, and the values and words of the phrase's fields."""

    intent: str
    phrase: str
    fields: Mapping[str, SpokenField]

    def list_words(self) -> Words:
        """Returns the words of each field; those of an optional field begin with a space."""
        spaced = {name for name, field in self.fields.items() if name in OPTIONAL and field.words}
        return {name: " " * (name in spaced) + field.words for name, field in self.fields.items()}

    def list_slots(self) -> Slots:
        """Returns the values of the fields by slot."""
        return {slot: value for field in self.fields.values() for slot, value in field.slots.items()}


@dataclass(frozen=True, slots=True)
class Utterance:
    """Holds a text, and the right intent and slots.

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
    wordings = INTENTS[intent].sentences if sentence else INTENTS[intent].phrases
    forms, offset = OPENINGS if sentence else FORMS, [*INTENTS].index(intent)
    return tuple(
        (row, form)
        for row in range(len(wordings))
        for column, form in enumerate(forms)
        if find_pair_split(row, column, offset) == split
    )


@cache
def list_frames(split: str) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """Returns the families of frames in a split, by group: markers and arrangements."""
    return {
        group.name: tuple(
            (marker, arrangement)
            for row, marker in enumerate(group.markers)
            for column, arrangement in enumerate(group.arrangements)
            if find_pair_split(row, column, offset) == split
        )
        for offset, group in enumerate(GROUPS)
    }


def fill_phrase(
    rng: random.Random, intent: str, phrase: str, similar_to: SampledRequest | None = None
) -> SampledRequest:
    """Samples a phrase's fields; some are copied from the request `similar_to`."""
    fields = {}
    for name in list_fields(phrase):
        if similar_to and name in similar_to.fields and name != "clause" and rng.random() < COPIED_SHARE:
            fields[name] = similar_to.fields[name]
        elif name == "clause":
            fields[name] = SpokenField({}, sample_clause(rng, intent))
        elif name in OPTIONAL and rng.random() >= OPTIONAL_SHARE:
            fields[name] = SpokenField({}, "")
        else:
            fields[name] = FIELDS[name](rng)
    return SampledRequest(intent, phrase, fields)


def sample_clause(rng: random.Random, outer_intent: str) -> str:
    """Samples the content of a reminder or message: a phrase of another intent, whose slots do not count."""
    barred = BARRED_CLAUSE_FIELDS[outer_intent]
    while True:
        intent = rng.choice([*INTENTS])
        phrase = rng.choice(INTENTS[intent].phrases)
        fits = intent not in BARRED_CLAUSE_FIELDS and not barred & {*list_fields(phrase)}
        if fits and not FIRST_PERSON.search(phrase):
            return phrase.format_map(fill_phrase(rng, intent, phrase).list_words())


def sample_request(
    rng: random.Random, intent: str, similar_to: SampledRequest | None = None, third_person: bool = False
) -> SampledRequest:
    """Samples a request of an intent. third_person: without "me" and "my", so that somebody else can have done it."""
    phrases = [each for each in INTENTS[intent].phrases if not (third_person and FIRST_PERSON.search(each))]
    return fill_phrase(rng, intent, rng.choice(phrases), similar_to)


def sample_other_intent(rng: random.Random, *taken: str) -> str:
    """Samples the intent of a distractor: none of those taken, and mostly of the topic of the first of them."""
    topic = INTENTS[taken[0]].topic
    others = [name for name in INTENTS if name not in taken]
    of_topic = [name for name in others if INTENTS[name].topic == topic]
    return rng.choice(of_topic if of_topic and rng.random() < SAME_TOPIC_SHARE else others)


def inflect_request(request: SampledRequest, suffix: str) -> Words:
    """Returns a request as a phrase, a gerund and a participle, under field names that end in `suffix`."""
    gerund, participle = inflect(request.phrase)
    words = request.list_words()
    phrases = {"do": request.phrase, "doing": gerund, "done": participle}
    return {f"{name}{suffix}": phrase.format_map(words) for name, phrase in phrases.items()}


def sample_wording(
    rng: random.Random, split: str, intent: str, similar_to: SampledRequest | None = None
) -> tuple[SampledRequest, str, tuple[str, ...]]:
    """Samples a request in a form of this split; returns it, the form with the phrase in it, and its family."""
    sentence = bool(INTENTS[intent].sentences) and rng.random() < SENTENCE_SHARE
    row, form = rng.choice(list_pairs(intent, sentence, split))
    phrase = (INTENTS[intent].sentences if sentence else INTENTS[intent].phrases)[row]
    if sentence:
        wording = form.replace("{say}", phrase)
    else:
        wording = form.replace("{doing}", inflect(phrase)[0]).replace("{do}", phrase)
    wording = re.sub(r"\?$", QUESTION_END, wording)
    return fill_phrase(rng, intent, phrase, similar_to), wording, (intent, phrase, form)


def sample_utterance(split: str, rng: random.Random) -> Utterance:
    """Samples an utterance of `train`, `valid` or `test`."""
    group = rng.choices(GROUPS, [each.weight for each in GROUPS])[0]
    if group.name == "plain":
        request, wording, family = sample_wording(rng, split, rng.choice([*INTENTS]))
        text = punctuate(wording.format_map(request.list_words()))
        return Utterance(text, request.intent, request.list_slots(), group.name, family)
    marker, arrangement = rng.choice(list_frames(split)[group.name])
    family = (group.name, marker, arrangement)
    if group.name.startswith("slot_"):
        return sample_slot_correction(split, rng, group, marker, arrangement)
    request, words = sample_frame_words(split, rng, arrangement)
    text = punctuate(arrangement.format_map({"m": marker, "M": capitalize(marker), **words}))
    if group.name in GROUPS_WITHOUT_REQUEST:
        return Utterance(text, NO_REQUEST, {}, group.name, family)
    return Utterance(text, request.intent, request.list_slots(), group.name, family)


def sample_frame_words(split: str, rng: random.Random, arrangement: str) -> tuple[SampledRequest, Words]:
    """Samples a request and its distractors; returns the request, and the words of a frame's fields except markers."""
    names, intent, words = {*list_fields(arrangement)}, rng.choice([*INTENTS]), {"who": rng.choice(SPEAKERS)}
    request, wording, _ = sample_wording(rng, split, intent)
    if "say" in names:
        words["say"] = wording.format_map(request.list_words())
    else:
        request = sample_request(rng, request.intent)
    words |= inflect_request(request, "")
    taken = [request.intent]
    for suffix in "23":
        other_intent = sample_other_intent(rng, *taken)
        distractor = sample_request(rng, other_intent, request, third_person=f"done{suffix}" in names)
        taken.append(other_intent)
        words |= inflect_request(distractor, suffix)
        if f"say{suffix}" in names:
            distractor, wording, _ = sample_wording(rng, split, other_intent, request)
            words[f"say{suffix}"] = wording.format_map(distractor.list_words())
    return request, words


def sample_slot_correction(
    split: str, rng: random.Random, group: FrameGroup, marker: str, arrangement: str
) -> Utterance:
    """Samples an utterance with a wrong and the right value of one field."""
    value_after = group.name in GROUPS_WITH_VALUE_AFTER
    while True:
        request, wording, _ = sample_wording(rng, split, rng.choice([*INTENTS]))
        names = [name for name, field in request.fields.items() if field.slots]
        if value_after and "clause" in request.fields:
            continue  # the corrected slot could be one of the clause
        if value_after and request.fields.get("where", SpokenField({}, "")).words:
            names = [name for name in names if name == "where"]
        if names:
            break
    name = rng.choice(names)
    right = request.fields[name]
    while (wrong := FIELDS[name](rng)).slots == right.slots:
        pass
    words = request.list_words()
    wrong_words = {**words, name: " " * (name in OPTIONAL) + wrong.words}
    frame_words = {"m": marker, "M": capitalize(marker), "w": wrong.words, "r": right.words}
    if value_after:
        frame_words |= {"say": wording.format_map(words), "wrong": wording.format_map(wrong_words)}
        text = arrangement.format_map(frame_words)
    else:
        correction = " " * (name in OPTIONAL) + arrangement.format_map(frame_words)
        text = wording.format_map({**words, name: correction})
    family = (group.name, marker, arrangement)
    return Utterance(punctuate(text), request.intent, request.list_slots(), group.name, family)


def capitalize(text: str) -> str:
    """Returns a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def punctuate(text: str) -> str:
    """Returns a text with correct spaces, commas and ends of sentences, and with capitals at their starts."""
    text = re.sub(rf"{QUESTION_END}(?:\.(?!\.)|$)", "?", text).replace(QUESTION_END, "")
    text = re.sub(r"(?:\s*,|\s-)+(?=\s*(?:[.?!,):]|-\s|$))", "", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"(^\"?|(?<!\.\.)[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), text)
    text = re.sub(r"\bi\b", "I", text)
    return text if text.endswith((".", "?")) else f"{text}."
