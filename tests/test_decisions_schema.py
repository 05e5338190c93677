"""JSON schemas as forms: what pydantic and OpenAI's helpers send, all that a form says is valid, refusals by path."""

from __future__ import annotations

import enum
import json
import math
import random
from itertools import pairwise
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import pydantic_function_tool
from openai.lib._parsing._completions import type_to_response_format_param
from openai.lib._parsing._responses import type_to_text_format_param
from pydantic import BaseModel
from pydantic import Field as Described
from slow_schema import is_valid
from tiny import FULL

from runtime.decisions.document import read_document
from runtime.decisions.form import Decision, Field, FieldDecision, FreeText
from runtime.decisions.schema import MAX_ALL_VALUES, MAX_DEPTH, MAX_VALUES, Budget, SchemaForm, enclose, read_schema
from runtime.errors import UserError


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    """Where it is."""

    color: Color
    floor: Annotated[int, Described(ge=-1, lt=2)]


class Ticket(BaseModel):
    intent: Literal["refund", "b c", 'é"x']
    one: Literal["only"]
    mixed: Literal["a", 1, True, None]
    urgent: bool = Described(description="whether it can wait")
    color: Color | None
    stars: Optional[int] = Described(default=None, ge=0, le=2)  # noqa: UP045
    place: Place
    other: Place = Described(description="described, which OpenAI's helper writes out")
    pair: tuple[bool, Literal["x", "y"]]
    two: Annotated[list[Color], Described(min_length=2, max_length=2)]
    note: str = Described(max_length=10)
    first: Color = Color.RED
    five: Annotated[int, Described(ge=0, le=10, multiple_of=5)]
    either: Place | Color


def texts(form: SchemaForm) -> list[str]:
    """The form's parts on a line each, fields by their values."""
    return [
        part if isinstance(part, str) else "|".join(part.values) if isinstance(part, Field) else f"<{part.max_tokens}>"
        for part in form.form.parts
    ]


PLACES = [f'{{"color":"{color}","floor":{floor}}}' for color in ("red", "blue") for floor in (-1, 0, 1)]
TICKET = [
    '{"intent":', r'"refund"|"b c"|"é\"x"', ',"one":"only","mixed":', '"a"|1|true|null', ',"urgent":', "true|false",
    ',"color":', '"red"|"blue"|null', ',"stars":', "0|1|2|null", ',"place":{"color":', '"red"|"blue"', ',"floor":',
    "-1|0|1", '},"other":{"color":', '"red"|"blue"', ',"floor":', "-1|0|1", '},"pair":[', "true|false", ",", '"x"|"y"',
    '],"two":[', '"red"|"blue"', ",", '"red"|"blue"', '],"note":"', "<10>", '","first":', '"red"|"blue"', ',"five":',
    "0|5|10", ',"either":', "|".join([*PLACES, '"red"', '"blue"']), "}",
]  # fmt: skip


def test_what_pydantic_and_every_helper_of_openai_send_is_the_same_form() -> None:
    made = read_schema(Ticket.model_json_schema())
    assert texts(made) == TICKET
    assert made.lengths == {("note",): 10}
    paths = [part.path for part in made.form.parts if not isinstance(part, str)]
    assert paths[:5] == [("intent",), ("mixed",), ("urgent",), ("color",), ("stars",)]
    assert ("place", "floor") in paths and ("two", 1) in paths and len({*paths}) == len(paths)
    chat: Any = type_to_response_format_param(Ticket)
    response: Any = type_to_text_format_param(Ticket)
    tool: Any = pydantic_function_tool(Ticket)
    for sent in (chat["json_schema"]["schema"], response["schema"], tool["function"]["parameters"]):
        assert sent["additionalProperties"] is False  # they are not pydantic's
        assert read_schema(sent) == made


def test_a_form_within_words_has_its_paths_below_theirs() -> None:
    made = enclose('{"name":"f","arguments":', read_schema(Ticket.model_json_schema()), "}", "arguments")
    assert made.form.parts[0] == '{"name":"f","arguments":{"intent":' and made.form.parts[-1] == "}}"
    assert made.lengths == {("arguments", "note"): 10}
    assert all(part.path[0] == "arguments" for part in made.form.parts if not isinstance(part, str))


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


BOOLEAN, WORD = {"type": "boolean"}, {"enum": ["a", "b"]}


def test_values_come_once_and_a_single_one_is_no_field() -> None:
    assert texts(read_schema({"enum": [1, 1.0, True, "1", None, "1"]})) == ['1|true|"1"|null']
    assert texts(read_schema({"anyOf": [BOOLEAN, {"const": True}, {"type": "null"}]})) == ["true|false|null"]
    assert texts(read_schema({"type": "integer", "minimum": 2.5, "exclusiveMaximum": 4})) == ["3"]
    assert texts(read_schema({"type": ["integer", "null"], "minimum": 1, "maximum": 2})) == ["1|2|null"]
    assert texts(read_schema({"type": ["string", "null"], "enum": ["a", None]})) == ['"a"|null']
    assert texts(read_schema(obj())) == ["{}"]
    assert texts(read_schema({"type": "array", "minItems": 0, "maxItems": 0})) == ["[]"]
    assert texts(read_schema({"type": "string", "maxLength": 0})) == ['""']
    assert texts(read_schema({"enum": [{"a": [1, 2]}, []]})) == ['{"a":[1,2]}|[]']


RECURSIVE = {"$defs": {"T": obj(next={"anyOf": [{"$ref": "#/$defs/T"}, {"type": "null"}]})}, "$ref": "#/$defs/T"}
REFUSED: list[tuple[Any, str]] = [
    ({"type": "number"}, "schema.type is \"number\""),
    (obj(a={"type": "string", "pattern": "^a"}), "schema.properties.a.pattern "),
    (obj(a={"type": "string", "format": "date"}), "schema.properties.a.format "),
    (obj(a={"type": "string", "minLength": 1}), "schema.properties.a.minLength "),
    (obj(**{"a b": {"oneOf": [BOOLEAN]}}), 'schema.properties["a b"].oneOf '),
    (obj(a={"type": "integer"}), "schema.properties.a is an integer without a minimum"),
    (obj(a={"type": "integer", "minimum": 1}), "schema.properties.a is an integer without a maximum"),
    (obj(a={"type": "integer", "minimum": 2, "maximum": 1}), "schema.properties.a has no multiple"),
    (obj(a={"type": "integer", "minimum": True, "maximum": 1}), "schema.properties.a.minimum is true"),
    (obj(a={"type": "integer", "minimum": 0, "maximum": math.inf}), "schema.properties.a.maximum is Infinity"),
    (obj(a={"type": "integer", "minimum": 0, "maximum": 10**400}), "schema.properties.a.maximum is a huge number"),
    (obj(a={"type": "integer", "minimum": 0, "maximum": 1e300}), "schema.properties.a.maximum is 1e+300"),
    (obj(a={"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 0.5}), "schema.properties.a.multipleOf "),
    (obj(a={"anyOf": [{"type": "string"}, {"type": "null"}]}), "schema.properties.a.anyOf[0] holds a free text"),
    (obj(a={"type": ["string", "null"]}), "schema.properties.a.type holds a free text"),
    (obj(a={"type": ["string", "strange"]}), "schema.properties.a.type is "),
    (obj(a={"anyOf": []}), "schema.properties.a.anyOf is []"),
    (obj(a={"anyOf": [BOOLEAN], "minimum": 1}), "schema.properties.a.minimum "),
    (obj(a={"enum": []}), "schema.properties.a.enum is []"),
    (obj(a={"enum": ["x"], "const": "x"}), "schema.properties.a.const comes with an enum"),
    (obj(a={"enum": ["x", 1], "type": "string"}), "schema.properties.a.enum[1] is 1"),
    (obj(a={"enum": [True], "type": "integer"}), "schema.properties.a.enum[0] is true"),
    (obj(a={"enum": [math.nan]}), "schema.properties.a.enum[0] is NaN"),
    (obj(a={"enum": ["\ud800"]}), "schema.properties.a.enum[0] holds half a surrogate"),
    (obj(**{"\ud800": BOOLEAN}), 'schema.properties["\\ud800"] holds half a surrogate'),
    (obj(a={"type": "array", "items": BOOLEAN}), "schema.properties.a has minItems 0 and maxItems null"),
    (obj(a={"type": "array", "items": BOOLEAN, "minItems": 1, "maxItems": 2}), "schema.properties.a has minItems 1"),
    (obj(a={"type": "array", "prefixItems": [BOOLEAN], "minItems": 2, "maxItems": 2}), "schema.properties.a.minItems "),
    (obj(a={"type": "array", "items": [BOOLEAN], "minItems": 1, "maxItems": 1}), "schema.properties.a.items is a list"),
    (obj(a={"type": "array", "items": BOOLEAN, "uniqueItems": True}), "schema.properties.a.uniqueItems "),
    ({"type": "object"}, "schema.properties is null"),
    ({"type": "object", "additionalProperties": WORD}, "schema.properties is null"),
    ({**obj(), "additionalProperties": True}, "schema.additionalProperties is true"),
    ({**obj(a=WORD), "additionalProperties": WORD}, "schema.additionalProperties is an object"),
    ({**obj(a=WORD), "required": ["b"]}, 'schema.required is ["b"]'),
    ({**obj(a=WORD), "patternProperties": {}}, "schema.patternProperties "),
    ({"properties": {"a": WORD}}, "schema.properties comes without a type"),
    ({}, "schema has no type"),
    ({"not": WORD}, "schema.not comes without a type"),
    ({"allOf": [WORD, BOOLEAN]}, "schema.allOf comes without a type"),
    (obj(a=True), "schema.properties.a is true"),
    ([], "schema is []"),
    (None, "schema is null"),
    ({"$ref": "#"}, 'schema.$ref is "#", which holds itself'),
    ({"$ref": "https://example.org/x"}, "schema.$ref is "),
    ({"$ref": "#/$defs/Missing"}, 'schema.$ref is "#/$defs/Missing", which the schema does not have'),
    (RECURSIVE, "schema.$defs.T.properties.next.anyOf[0].$ref "),
    ({**obj(a={"$ref": "#/$defs/a~1b", "minimum": 1}), "$defs": {"a/b": WORD}}, "schema.properties.a.minimum "),
    ({**obj(a={"$ref": "#/$defs/a~1b"}), "$defs": {"a/b": {"type": "x"}}}, 'schema.$defs["a/b"].type '),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "line"), REFUSED, ids=[line[:50] for _, line in REFUSED])
def test_the_first_construct_beyond_the_subset_is_named_by_its_path(schema: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        read_schema(schema)
    assert str(refused.value).startswith(line), str(refused.value)
    assert len(str(refused.value).encode()) < 400


def fork(levels: int) -> dict[str, Any]:
    """A schema of `levels` definitions, each of which holds the next one twice."""
    names = [f"L{level}" for level in range(levels)]
    defs: dict[str, Any] = {
        name: obj(a={"$ref": f"#/$defs/{below}"}, b={"$ref": f"#/$defs/{below}"}) for name, below in pairwise(names)
    }
    return {"$defs": {**defs, names[-1]: BOOLEAN}, "$ref": "#/$defs/L0"}


def array(items: Any, count: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = BOOLEAN
    for _ in range(depth):
        schema = obj(a=schema)
    return schema


LARGE = {
    "a range of a billion": ({"type": "integer", "minimum": 0, "maximum": 10**9}, "values"),
    "all of 54 bits": ({"type": "integer", "minimum": -(2**53), "maximum": 2**53}, "values"),
    "10,000 values": ({"enum": [f"v{i}" for i in range(10_000)]}, "values"),
    "many values in many fields": (obj(**{f"f{i}": {"enum": list(range(1000))} for i in range(5)}), "values"),
    "references that double": (fork(25), "schemas"),
    "an array of a billion": (array(BOOLEAN, 10**9), "schemas"),
    "arrays of arrays": (array(array(array(BOOLEAN, 500), 500), 500), "schemas"),
    "alternatives of 2^60 values": ({"anyOf": [array(BOOLEAN, 60), {"type": "null"}]}, "values"),
    "depth": (nested(MAX_DEPTH + 1), "deep"),
    "a chain of references": ({"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(900)},
                               "$ref": "#/$defs/d0"}, "deep"),
    "a long value": ({"enum": ["a" * 511, "b"]}, "513 characters"),
    "long values": ({"enum": ["a" * 40_000, "b" * 40_000]}, "characters"),
    "long values, combined": ({"anyOf": [array({"enum": ["a" * 5_000, "b"]}, 8)]}, "characters"),
    "many types of an enum": ({"type": ["null"] * 100_000, "enum": [*range(1000)]}, "100000 types"),
    "many types": ({"type": ["null", "boolean"] * 4}, "8 types"),
    "a long reference": ({"$defs": {"a" * 9000: BOOLEAN}, "$ref": f"#/$defs/{'%61' * 9000}"}, "27008 characters"),
    "long names": (obj(**{"x" * 70_000: BOOLEAN}), "characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_what_is_sized_by_a_stranger_has_a_bound(name: str) -> None:
    schema, bound = LARGE[name]
    with pytest.raises(UserError, match=bound):
        read_schema(schema)


def test_the_bounds_themselves_are_taken() -> None:
    fields = {
        f"f{i}": {"type": "integer", "minimum": 1, "maximum": MAX_VALUES} for i in range(MAX_ALL_VALUES // MAX_VALUES)
    }
    read_schema(obj(**fields))
    read_schema(nested(MAX_DEPTH))
    budget = Budget()
    read_schema(obj(**fields), budget=budget)
    with pytest.raises(UserError, match="all fields"):
        read_schema(WORD, budget=budget)  # schemas that come together share the bounds


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text('ab"\\é\n', max_size=3), st.just(1.5))


@st.composite
def closed(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    """A schema of few values."""
    kinds = ["boolean", "null", "integer", "enum", "const", "types", "ref"] + ["anyOf", "object", "array"] * (depth < 2)
    match draw(st.sampled_from(kinds)):
        case "integer":
            least = draw(st.integers(-4, 4))
            upper = {draw(st.sampled_from(["maximum", "exclusiveMaximum"])): least + draw(st.integers(1, 4))}
            return {"type": "integer", "minimum": least, **upper}
        case "enum":
            return {"enum": draw(st.lists(SCALARS, min_size=1, max_size=4)), "title": "T"}
        case "const":
            return {"const": draw(SCALARS)}
        case "types":
            return {"type": ["integer", "null", "boolean"], "minimum": 0, "maximum": 1}
        case "ref":
            return {"$ref": "#/$defs/D", "description": "d"}
        case "anyOf":
            return {"anyOf": draw(st.lists(closed(depth + 1), min_size=1, max_size=2))}
        case "object":
            return draw(objects(closed(depth + 1), 2))
        case "array":
            return draw(arrays(closed(depth + 1)))
        case kind:
            return {"type": kind}


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]], most: int) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.text('ab"é ', max_size=3), inner, max_size=most))
    required = draw(st.sets(st.sampled_from(sorted(properties)))) if properties else set()
    return {"type": "object", "properties": properties, "required": sorted(required), "additionalProperties": False}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    first = draw(st.lists(inner, max_size=2))
    count = draw(st.integers(0, 3))
    rest: dict[str, Any] = {"items": draw(inner)} if count > len(first) else {}
    return {"type": "array", "minItems": count, "maxItems": count, **({"prefixItems": first} if first else {}), **rest}


TEXTS = st.one_of(st.just({"type": "string"}), st.just({"type": "string", "maxLength": 4}))
ROOTS = st.one_of(closed(), objects(st.one_of(closed(), TEXTS, objects(st.one_of(closed(1), TEXTS), 3)), 4))
RAW = st.text('ab"\\\n\t{}:,é\ud83d😀', max_size=9).filter(lambda text: "\ud83d" not in text)


@settings(max_examples=1000 if FULL else 60)
@given(ROOTS, st.randoms(use_true_random=False), st.data())
def test_all_that_a_form_can_say_is_valid_against_its_schema(
    schema: dict[str, Any], rng: random.Random, data: st.DataObject
) -> None:
    schema = {**schema, "$defs": {"D": {"enum": ["x", "y", None]}}}
    try:
        made = read_schema(schema)
    except UserError as error:
        assert "values" in str(error)  # alternatives may have too many
        return
    fields = []
    for part in made.form.parts:
        if isinstance(part, FreeText):
            fields.append(FieldDecision(part.path, data.draw(RAW), -1, (), math.nan))
        elif isinstance(part, Field):
            assert len({*part.values}) == len(part.values) > 1
            index = rng.randrange(len(part.values))
            shares = tuple(1 / len(part.values) for _ in part.values)
            fields.append(FieldDecision(part.path, part.values[index], index, shares, shares[index]))
    raw = iter(field.value for field in fields)
    text = "".join(part if isinstance(part, str) else next(raw) for part in made.form.parts)
    document = read_document(made, Decision(text, tuple(fields), len(fields), False, "parallel"))
    assert json.loads(document.text) == document.value and is_valid(document.value, schema)
    if not made.lengths:
        assert document.text == text  # what was on the canvas
    assert [field.path for field in document.fields] == [field.path for field in fields]
