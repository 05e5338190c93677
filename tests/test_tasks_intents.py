"""The task intents: families on one side, one form for all intents, what an utterance means, grading and figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from typing import Any

import pytest
import tiny

from runtime.decisions.encoded_form import count_max_tokens, encode_form
from runtime.errors import UserError
from runtime.text.tokenizer import Tokenizer
from train import tasks
from train.data.bpe import train_tokenizer
from train.evaluation.evaluation_run import measure_task
from train.tasks import Problem, intent_utterances, intents, surface
from train.tasks.intent_frames import FOLDS, FORMS, GROUPS, OPENINGS, RETRACTIONS, find_pair_split
from train.tasks.intent_phrases import INTENTS, IRREGULAR_VERBS, NAMES, inflect
from train.tasks.intent_utterances import list_frames, list_pairs, punctuate, sample_utterance
from train.tasks.intent_values import HOURS, MINUTES_PAST, MINUTES_TO, list_ways_to_say_time

[TASK] = tasks.choose_tasks("intents")
PLAIN = ("train", "valid", "test")
# Of 300 problems with seed 0: what is measured on them stays comparable.
DIGESTS = {"valid": "b8ae1607a4f9667b", "test": "c6474211145847e7", "valid_surface": "b08cd09227315cb5"}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is of a JSON schema, as far as the task's schemas go."""
    if "anyOf" in schema:
        return any(accepts(each, value) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"] and type(value) is str
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False and schema["required"] == [*schema["properties"]]
        properties = schema["properties"]
        return value.keys() == properties.keys() and all(accepts(properties[name], value[name]) for name in value)
    if schema["type"] == "null":
        return value is None
    return type(value) is int and schema["minimum"] <= value <= schema["maximum"]


@pytest.mark.parametrize("split", DIGESTS)
def test_what_is_measured_on_stays_byte_for_byte(split: str) -> None:
    digest = hashlib.sha256()
    for problem in TASK.problems(split, 300, 0):
        digest.update(repr((problem.prompt, problem.answer, problem.group, problem.tests)).encode())
    assert digest.hexdigest()[:16] == DIGESTS[split]


def test_no_family_is_on_two_sides_and_there_are_thousands() -> None:
    families = {}
    for split in PLAIN:
        requests = {
            (intent, row, form)
            for intent in INTENTS
            for sentence in (False, True)
            for row, form in list_pairs(intent, sentence, split)
        }
        framed = {(name, *pair) for name, each in list_frames(split).items() for pair in each if name != "plain"}
        families[split] = requests | framed
        assert all(list_frames(split).values())  # each kind is in every split
    assert not any(families[one] & families[other] for one, other in itertools.combinations(PLAIN, 2))
    assert len(families["train"]) > 3000 and min(len(families[split]) for split in PLAIN) > 500


def test_every_marker_arrangement_phrase_and_form_is_in_training_families() -> None:
    for group in GROUPS[1:]:
        known = list_frames("train")[group.name]
        assert {marker for marker, _ in known} == {*group.markers}
        assert {arrangement for _, arrangement in known} == {*group.arrangements}
    for sentence, forms in ((False, FORMS), (True, OPENINGS)):
        used = {intent: list_pairs(intent, sentence, "train") for intent in INTENTS}
        assert {form for each in used.values() for _, form in each} == {*forms}
        for intent, each in INTENTS.items():
            wordings = each.sentences if sentence else each.phrases
            assert {row for row, _ in used[intent]} == {*range(len(wordings))}
    assert [find_pair_split(row, 0) for row in range(FOLDS)].count("train") == FOLDS - 2


def test_sampled_utterances_are_of_their_split_s_families_and_of_words_that_training_has() -> None:
    seen, words = dict[str, set[tuple[str, ...]]](), dict[str, set[str]]()
    for split, count in zip(PLAIN, (12_000, 1_500, 1_500), strict=True):
        rng = random.Random(split)
        sampled = [sample_utterance(split, rng) for _ in range(count)]
        seen[split] = {each.family for each in sampled}
        words[split] = {word.lower() for each in sampled for word in re.findall(r"[A-Za-z']+", each.text)}
    assert not any(seen[one] & seen[other] for one, other in itertools.combinations(PLAIN, 2))
    assert not (words["valid"] | words["test"]) - words["train"]


def test_no_utterance_of_valid_and_test_written_in_any_way_comes_out_of_train() -> None:
    trained = {problem.prompt for problem in TASK.problems("train", 6000, 1)}
    held_out = [problem.prompt for split in intents.SPLITS[1:] for problem in TASK.problems(split, 500, 1)]
    assert not trained & {*held_out} and len({*held_out}) == 2000


def test_the_same_arguments_give_the_same_problems_and_another_split_is_refused() -> None:
    assert [*TASK.problems("train", 50, 3)] == [*TASK.problems("train", 60, 3)][:50] != [*TASK.problems("train", 50, 4)]
    with pytest.raises(UserError, match="unknown split 'dev'; the splits are train, valid, test"):
        TASK.problems("dev", 1, 0)


def test_every_answer_is_of_the_one_schema_and_of_its_intent_s_and_all_values_are_used() -> None:
    used: Counter[tuple[str, object]] = Counter()
    for split in intents.SPLITS:
        for problem in TASK.problems(split, 5000 if split == "train" else 400, 2):
            values = json.loads(problem.answer)
            assert [*values] == [*intents.FIELDS] and problem.answer == json.dumps(values, separators=(",", ":"))
            assert accepts(intents.make_schema(), values) and accepts(intents.make_schema(values["intent"]), values)
            used.update(values.items())
    assert {name for field, name in used if field == "intent"} == {*NAMES} and len(NAMES) == 44
    for slot, known in intents.SLOTS.items():
        if not isinstance(known, range):
            assert {value for field, value in used if field == slot} == {*known, None}
    assert {value for field, value in used if field == "hour"} == {*HOURS, None}


def test_an_intent_s_schema_has_its_slots_alone() -> None:
    properties = intents.make_schema("alarm_set")["properties"]
    assert properties["intent"] == {"enum": ["alarm_set"]} and properties["device"] == {"type": "null"}
    assert properties["hour"] == {"type": "integer", "minimum": 0, "maximum": 23}
    assert properties["day"]["anyOf"][1] == {"type": "null"} and "monday" in properties["day"]["anyOf"][0]["enum"]
    assert {
        properties["type"] for properties in list(intents.make_schema("no_request")["properties"].values())[1:]
    } == {"null"}
    alarm = {**dict.fromkeys(intents.FIELDS), "intent": "alarm_set", "hour": 7, "minute": 0}
    assert accepts(intents.make_schema("alarm_set"), alarm) and not accepts(intents.make_schema("timer_set"), alarm)
    assert not accepts(intents.make_schema("alarm_set"), {**alarm, "device": "lamp"})


@pytest.mark.parametrize("intent", INTENTS)
def test_phrases_of_an_intent_agree_on_what_it_must_have_and_are_inflected(intent: str) -> None:
    always, ever = intents.list_slots(intent)
    assert always <= ever
    for phrase in (*INTENTS[intent].phrases, *INTENTS[intent].sentences):
        required = {"hour", "minute"} & ever if "{time}" in phrase else set[str]()
        assert required <= always
    for phrase in INTENTS[intent].phrases:
        gerund, participle = inflect(phrase)
        assert gerund.split()[0].endswith("ing") and phrase.split()[1:] == gerund.split()[1:] == participle.split()[1:]
        verb = phrase.split()[0]
        # what ends in a vowel and a consonant may double it, so such verbs are listed or have more than one syllable
        doubling = re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb)
        assert verb in IRREGULAR_VERBS or not doubling or verb == "add", verb


PUNCTUATED = [
    ("turn on the lamp - the fan,, no.", "Turn on the lamp - the fan, no."),
    ("is the lamp on\0, no wait, stop", "Is the lamp on, no wait, stop."),
    ("is the lamp on\0. no wait", "Is the lamp on? No wait."),
    ("is the lamp on\0... no", "Is the lamp on... no."),
    ("is the lamp on\0", "Is the lamp on?"),
    ("for 7 - no - 8 -", "For 7 - no - 8."),
    ('"stop", Ben said, i do not', '"Stop", Ben said, I do not.'),
]


@pytest.mark.parametrize(("text", "written"), PUNCTUATED)
def test_utterances_are_written_as_sentences(text: str, written: str) -> None:
    assert punctuate(text) == written


HOUR_OF = {surface.spell_number(n): n for n in range(1, 13)} | {str(n): n for n in range(1, 13)}


def read_time(words: str) -> tuple[int, int]:
    """The time that words mean, by a grammar of its own; an hour without more words is in the morning."""
    if words in ("noon", "midnight"):
        return (12 if words == "noon" else 0), 0
    found = re.fullmatch(r"(?:(\D+) (past|to) )?(\w+)(?::(\d\d))?(?: o'clock)?(?: (am|pm|in the \w+))?", words)
    assert found, words
    before, side, hour_word, digits, part = found.groups()
    hour = HOUR_OF[hour_word] if hour_word in HOUR_OF else int(hour_word)
    minute = int(digits or 0)
    if side:
        table = MINUTES_PAST if side == "past" else MINUTES_TO
        minute = next(number for number, name in table.items() if name == f"{before} {side}")
        hour -= side == "to"
    return hour + 12 * (part in ("pm", "in the afternoon", "in the evening")), minute


def test_every_way_to_say_a_time_means_that_time() -> None:
    ways = set[str]()
    for hour, minute in itertools.product(HOURS, range(0, 60, 5)):
        spoken = list_ways_to_say_time(hour, minute)
        assert spoken and all(read_time(words) == (hour, minute) for words in spoken), (hour, minute, spoken)
        ways |= {*spoken}
    assert {"half past seven", "quarter to eight in the morning", "7 pm", "seven", "noon", "19:30"} <= ways


class Script(random.Random):
    """Randomness that always samples one group."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.group = [each for each in GROUPS if each.name == name]

    def choices(self, population: Any, *args: Any, **options: Any) -> Any:
        return self.group if population is GROUPS else super().choices(population, *args, **options)


@pytest.mark.parametrize("name", [group.name for group in GROUPS])
def test_the_right_request_is_in_each_utterance_and_counts(name: str) -> None:
    rng = Script(name)
    for split in ("train", "test"):
        for _ in range(60):
            utterance = sample_utterance(split, rng)
            assert utterance.kind == name and not re.search(r"[{}\0]|  | ,| \.|,,", utterance.text), utterance.text
            assert (utterance.intent == "no_request") == (name in intent_utterances.GROUPS_WITHOUT_REQUEST)
            for slot, value in utterance.slots.items():
                if slot in ("item", "music"):
                    assert str(value) in utterance.text.lower()


def test_a_corrected_slot_is_the_one_that_the_utterance_calls_right() -> None:
    """Read off the utterance by what follows a retraction, which is not how it was made."""
    rng, checked = Script("slot_after"), 0
    for _ in range(400):
        utterance = sample_utterance("train", rng)
        item = utterance.slots.get("item") or utterance.slots.get("music")
        mentions = [word for word in re.findall(r"\w+", utterance.text.lower()) if word in all_names(utterance.slots)]
        if item is None or len({*mentions}) < 2:  # it is the room that was wrong
            continue
        tail = re.split(rf"(?:{'|'.join(RETRACTIONS)})\b", utterance.text, flags=re.IGNORECASE)[-1].lower()
        wrong = next(word for word in mentions if word != item)
        assert item in tail, utterance.text
        assert wrong not in tail or re.search(rf"not (?:some )?{wrong}", tail), utterance.text
        checked += 1
    assert checked > 20


def all_names(slots: dict[str, str | int]) -> set[str]:
    return {str(value) for slot in ("item", "music") if slot in slots for value in intents.SLOTS[slot]}


def test_changes_of_writing_keep_the_answer_and_each_is_used() -> None:
    clean, written = [*TASK.problems("valid", 300, 3)], [*TASK.problems("valid_surface", 300, 3)]
    changes = Counter(problem.group for problem in written)
    assert changes.keys() == {*intents.CHANGES} and min(changes.values()) >= 15
    for before, after in zip(clean, written, strict=True):
        assert before.answer == after.answer and before.prompt != after.prompt
    assert all(TASK.grade_many(written, [problem.answer for problem in written]))


def test_typos_numbers_and_marks() -> None:
    rng = random.Random(0)
    spelled = {intents.misspell("Turn it off in the kitchen.", rng) for _ in range(300)}
    assert {"Turn it off in the ktichen.", "Turn it off in the kichen.", "Turn it off in the kitcchen."} <= spelled
    assert all(text.startswith("Turn it off in the k") and text.endswith(".") for text in spelled)
    assert intents.misspell("Turn it off.", rng) == "Turn it off."
    assert intents.spell_numbers("Wake me at 7:30 on day 3.", rng) == "Wake me at 7:30 on day 3."
    assert intents.spell_numbers("Set it to 21 degrees.", rng) in (
        "Set it to twenty-one degrees.", "Set it to twenty one degrees.",
    )  # fmt: skip
    marked = 'Ben said: "stop", but (no) wait - no - go at 7:30.'
    assert intents.drop_marks(marked, rng) == "Ben said stop but no wait no go at 7:30"


RIGHT = {**dict.fromkeys(intents.FIELDS), "intent": "device_on", "device": "lamp", "room": "attic"}


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, True),
        ({"room": "garage"}, False),
        ({"room": None}, False),
        ({"room": "moon"}, False),
        ({"intent": "device_off"}, False),
        ({"minute": 0}, False),
        ({"more": 1}, False),
    ],
)
def test_an_answer_is_right_as_a_whole(change: dict[str, Any], right: bool) -> None:
    problem = Problem("Turn on the lamp in the attic.", json.dumps(RIGHT, separators=(",", ":")), "plain")
    text = json.dumps({**RIGHT, **change})
    assert intents.grade(problem, text) == right
    assert not intents.grade(problem, text[:-1]) and not intents.grade(problem, "") and not intents.grade(problem, "[]")


def test_answers_outside_the_schema_are_none() -> None:
    for change in ({"hour": 24}, {"hour": True}, {"hour": 7.0}, {"hour": "7"}, {"device": 1}, {"intent": None}):
        assert intents.read_answer(json.dumps({**RIGHT, **change})) is None
    assert intents.read_answer(json.dumps({**RIGHT, "hour": 23})) == {**RIGHT, "hour": 23}
    assert intents.read_answer("[" * 100_000) is None
    assert intents.read_answer(json.dumps({key: RIGHT[key] for key in reversed(RIGHT)})) == RIGHT


def test_figures_of_answers_made_by_hand() -> None:
    problem = Problem("", json.dumps(RIGHT, separators=(",", ":")), "plain")
    wrong_room, wrong_intent = {**RIGHT, "room": "garage"}, {**RIGHT, "intent": "device_off"}
    texts = [json.dumps(RIGHT), json.dumps(wrong_room), json.dumps(wrong_intent), "no JSON"]
    figures, each = measure_task(TASK, [problem] * 4, texts)
    assert [figures[name] for name in intents.SHARES] == [0.25, 0.5, 0.5, 0.75]
    assert (figures["slot_room"], figures["slot_device"], figures["slot_hour"]) == (0.5, 0.75, 0.75)
    assert each == {
        "exact": [1, 0, 0, 0], "intent_accuracy": [1, 1, 0, 0],
        "slots_accuracy": [1, 0, 1, 0], "valid_json": [1, 1, 1, 0],
    }  # fmt: skip
    assert figures["exact_95"][0] < 0.25 < figures["exact_95"][1] and "slot_room_95" not in figures


def test_a_key_is_a_token_and_every_answer_fits_the_recipe_s_canvas_and_context() -> None:
    trained = list(TASK.problems("train", 6000, 0))  # as many as `train teacher` reads
    tokenizer = train_tokenizer(
        (text for each in trained for text in (each.prompt, each.answer)), 2048, TASK.split_pattern
    )
    known = tokenizer.get_vocab()
    assert all(f',"{slot}":' in known for slot in intents.SLOTS) and '{"intent":' in known and "null" in known
    held_out = [*TASK.problems("test", 2000, 0), *TASK.problems("test_surface", 2000, 0)]
    lengths = [len(tokenizer.encode(each.answer).ids) for each in (*trained, *held_out)]
    assert max(lengths) + 1 <= 32
    assert all(tokenizer.decode(tokenizer.encode(each.prompt).ids) == each.prompt for each in held_out[-200:])
    parts = encode_form(
        intents.make_form(), Tokenizer(tokenizer.to_str()).encode, tiny.contract(vocab=5000, candidates=64)
    )
    assert count_max_tokens(parts) + 1 <= 32  # whatever the values are
    prompts = [len(tokenizer.encode(each.prompt).ids) for each in (*trained, *held_out)]
    assert max(prompts) + 32 <= 128
