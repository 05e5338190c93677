"""Typed decisions from Python, on an exported model: types and their values, distributions, partial ones, mistakes."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from deciding import make_deciding_bundle
from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import Field as Described
from test_decisions_schema import Place

from runtime import Model, UserError, load
from runtime.decisions.form import Field, Form
from runtime.decisions.free_text import cut_text, read_free_text
from runtime.decisions.function_calls import decide_call, make_name_form
from runtime.decisions.schema import read_schema

ROOT = Path(__file__).parent.parent
PROMPT = "where is it"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
    CRIMSON = "red"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Ticket(BaseModel):
    model_config = ConfigDict(strict=True)

    intent: Literal["refund", "other"]
    urgent: bool
    place: Place | None
    pair: tuple[bool, Literal["x", "y"]]
    note: str = Described(max_length=6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deciding_bundle(tmp_path_factory.mktemp("deciding"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle, threads=1)


@pytest.mark.parametrize("probability", ["parallel", "ordered"])
def test_a_pydantic_model_is_decided(model: Model, probability: Any) -> None:
    decided = model.decide(PROMPT, Ticket, probability=probability)
    value = decided.value
    assert isinstance(value, Ticket) and isinstance(value.pair, tuple)  # a strict one, which takes no list from Python
    assert json.loads(decided.text) == value.model_dump(mode="json") and decided.probability == probability
    assert [field.path for field in decided.fields] == [
        ("intent",), ("urgent",), ("place",), ("pair", 0), ("pair", 1), ("note",),
    ]  # fmt: skip
    intent, note = decided.fields[0], decided.fields[-1]
    assert intent.value == value.intent and [each for each, _ in intent.distribution] == ["refund", "other"]
    assert intent.confidence == max(p for _, p in intent.distribution) == dict(intent.distribution)[value.intent]
    assert sum(p for _, p in intent.distribution) == pytest.approx(1)
    assert note.value == value.note and len(value.note) <= 6 and note.confidence is None and note.distribution == ()
    assert decided.forwards > 0 and not decided.partial
    form = model.decide_form(PROMPT, read_schema(Ticket.model_json_schema()).form, probability=probability)
    assert form.forwards == decided.forwards
    assert [field.probabilities for field in form.fields] == [
        tuple(p for _, p in field.distribution) for field in decided.fields
    ]


TYPES: list[tuple[Any, list[Any]]] = [
    (Literal["a", 1, True, None, "b c"], ["a", 1, True, None, "b c"]),
    (Literal[Level.LOW, "a"], [Level.LOW, "a"]),
    (Literal["only"], ["only"]),
    (Color, [Color.RED, Color.BLUE]),
    (Level, [Level.LOW, Level.HIGH]),
    (bool, [True, False]),
    (Annotated[int, Described(ge=1, lt=5)], [1, 2, 3, 4]),
    (Annotated[int, range(3)], [0, 1, 2]),
    (Annotated[int, Described(ge=1), range(9), Described(ge=0, le=3)], [1, 2, 3]),
    (["refund", "other"], ["refund", "other"]),
    ({"enum": ["x", {"a": [1]}, 1.5]}, ["x", {"a": [1]}, 1.5]),
    ({"type": "object", "properties": {}}, [{}]),
]


@pytest.mark.parametrize(("schema", "values"), TYPES, ids=[str(schema) for schema, _ in TYPES])
def test_a_type_gives_one_of_its_values_as_it_has_them(model: Model, schema: Any, values: list[Any]) -> None:
    seen = [model.decide(prompt, schema) for prompt in ("a", "bb", "?!", PROMPT)]
    for decided in seen:
        same = [value for value in values if value is decided.value or value == decided.value]
        assert same and type(decided.value) in {type(value) for value in values}
        assert len(decided.fields) == (len(values) > 1)
        if decided.fields:
            assert len(decided.fields[0].distribution) == len(values)
        else:
            assert decided.forwards == 0


def test_a_value_s_place_in_a_literal_counts_and_not_its_equality(model: Model) -> None:
    for prompt in ("a", "b", "c", "d", "e"):
        decided = model.decide(prompt, Literal[1, True, 0, False])
        assert json.dumps(decided.value) == decided.text


class Odd(BaseModel):
    call: Callable[[int], int]


WRONG: list[tuple[Any, str]] = [
    (int, "the schema is <class 'int'>; expected a pydantic model"),
    (Annotated[int, "no bound"], "schema is an integer without a minimum"),
    (Annotated[int, range(0, 10, 2)], "range(0, 10, 2); expected a range"),
    (Annotated[int, Described(ge=0, le=9, multiple_of=3)], "list its values in a Literal"),
    (Annotated[str, "x"], "expected a pydantic model"),
    ([], "the schema is []"),
    ([1, 2], "the schema is [1, 2]"),
    (Literal[b"x"], "the schema has the value b'x'"),
    (enum.Enum("Empty", {}), "the schema has no values"),
    (3, "the schema is 3"),
    (Odd, "Odd has no JSON schema (Cannot generate a JsonSchema for"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "line"), WRONG, ids=[line for _, line in WRONG])
def test_what_is_no_type_of_closed_choices_is_told(model: Model, schema: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        model.decide(PROMPT, schema)
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"probability": "both"}, "probability is 'both'"), ({"max_forwards": 0}, "max_forwards is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"), ({"threshold": 7.0}, "threshold 7.0 is outside"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("schema", [Literal["only"], bool], ids=["without a choice", "with one"])
def test_options_are_checked_whether_or_not_there_is_a_choice(
    model: Model, schema: Any, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        model.decide(PROMPT, schema, **options)


def test_a_model_s_own_validator_has_the_last_word(model: Model) -> None:
    class Picky(BaseModel):
        word: Literal["a", "b"]

        @field_validator("word")
        @classmethod
        def refuse(cls, word: str) -> str:
            raise ValueError("never")

    with pytest.raises(UserError, match=r'^\{"word":"[ab]"\} is within the schema, but Picky refuses it'):
        model.decide(PROMPT, Picky)


def test_a_partial_decision_has_no_value_and_the_text_so_far(model: Model) -> None:
    whole = model.decide(PROMPT, Ticket, probability="ordered")
    for most in {*range(1, whole.forwards, 6), whole.forwards - 1}:
        part = model.decide(PROMPT, Ticket, probability="ordered", max_forwards=most)
        assert part.partial and part.value is None and part.forwards <= most
        assert whole.text.startswith(part.text) and part.fields == whole.fields[: len(part.fields)]
    assert model.decide(PROMPT, Ticket, probability="ordered", max_forwards=whole.forwards) == whole


def test_a_decision_that_nobody_wants_any_more_ends_after_the_forward_pass_in_work(model: Model) -> None:
    left = iter([True, True, False])
    part = model.decide(PROMPT, Ticket, probability="ordered", wanted=lambda: next(left))
    assert part.partial and part.forwards == 2
    assert part == model.decide(PROMPT, Ticket, probability="ordered", max_forwards=2)


@pytest.mark.parametrize(
    ("written", "most", "content"),
    [
        ("plain", None, "plain"), ("plain", 3, "pla"), ('end" behind', None, "end"), (r"a \"b\" c", None, 'a "b" c'),
        (r"\u00e9\n", None, "é\n"), ("line\nbreak", None, "line\nbreak"), (r"\x \"", None, r"\x \""),
        ("half\\", None, "half\\"), (r"\ud800", None, r"\ud800"), ("", None, ""), (r"\\", None, "\\"),
    ],
)  # fmt: skip
def test_a_free_text_is_what_its_json_string_holds(written: str, most: int | None, content: str) -> None:
    assert read_free_text(written, most) == content


@pytest.mark.parametrize(
    ("written", "most", "text"),
    [
        ("plain", None, "plain"), ("plain", 5, "plain"), ("plain", 3, "pla"), (r"a\n\"b", 3, r"a\n\""),
        (r"\u00e9x", 1, "é"), (r"\x\x", 2, r"\\x"), (r"\x", 2, r"\x"),
    ],
)  # fmt: skip
def test_a_text_that_is_too_long_is_cut_as_a_json_string(written: str, most: int | None, text: str) -> None:
    assert cut_text(written, most) == text


PLACE = read_schema(Place.model_json_schema())
FUNCTIONS = {"go": PLACE, "stay": read_schema({"type": "object", "properties": {}}), "look": PLACE}


def test_a_function_is_chosen_and_then_its_arguments_are_decided(model: Model) -> None:
    names = set()
    for prompt in map(str, range(12)):
        choice = model.decide_form(prompt, make_name_form(FUNCTIONS, True))
        call = decide_call(model, prompt, FUNCTIONS, True)
        names.add(call.name)
        assert call.decision.fields[0].path == ("name",)
        assert tuple(p for _, p in call.decision.fields[0].distribution) == choice.fields[0].probabilities
        assert json.dumps(call.name) == choice.fields[0].value
        if call.name is None:
            assert call.arguments == "" and call.decision.forwards == choice.forwards and not call.decision.partial
            continue
        alone = decide_call(model, prompt, {call.name: FUNCTIONS[call.name]}, False)
        assert alone.arguments == call.arguments and alone.decision.fields == call.decision.fields[1:]
        assert call.decision.forwards == choice.forwards + alone.decision.forwards
        assert json.loads(call.decision.text) == {"name": call.name, "arguments": json.loads(call.arguments)}
        assert [field.path for field in alone.decision.fields] in (
            [], [("arguments", "color"), ("arguments", "floor")],
        )  # fmt: skip
        short = decide_call(model, prompt, FUNCTIONS, True, max_forwards=choice.forwards)
        if alone.decision.forwards:
            assert short.name == call.name and short.decision.partial
            assert short.decision.fields == call.decision.fields[:1]
    assert len(names) > 1


def test_a_bundle_without_candidates_says_how_to_export_it() -> None:
    other = load(ROOT / "samples" / "student.bundle", threads=1)
    with pytest.raises(UserError, match="export it with --candidates"):
        other.decide(PROMPT, bool)


def test_a_form_of_other_text_needs_no_schema(model: Model) -> None:
    decided = model.decide_form(PROMPT, Form(("It is ", Field((), ("here", "there")))))
    assert decided.text in ("It is here", "It is there")


@pytest.mark.process
def test_pydantic_is_not_imported_by_the_runtime() -> None:
    code = "import sys, runtime.decisions.typed, runtime.model; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
