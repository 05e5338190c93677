"""Converts a JSON schema to a form: compact JSON text with a field wherever the schema leaves a choice.

The subset is what pydantic's `model_json_schema` and OpenAI's helpers send for closed choices: docs/decisions.md has
the table. A form is flat: the alternatives of an `anyOf` are values of one field, each as its whole JSON text. Schemas
may come from strangers, so everything that a schema can make large has an upper bound.

In this module, `place` is a path in the schema, for messages, and `path` is a field's path in the document.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from urllib.parse import unquote

from .form import Field, Form, FreeText, Path
from .keywords import (
    ANNOTATIONS,
    DEFINITIONS,
    TYPES,
    check_keywords,
    check_types,
    describe_value,
    drop_duplicates,
    format_path_step,
    format_value,
    is_of_type,
    read_integers,
    refuse,
)

MAX_VALUES = 1024  # of one field
MAX_ALL_VALUES = 4096  # of all fields
MAX_DEPTH = 32  # of schemas within schemas, references counted
MAX_SCHEMAS = 1024  # that are read; a schema counts again for each reference to it
MAX_CHARACTERS = 1 << 16  # of all words and values
MAX_REFERENCE_CHARACTERS = 1024  # of a $ref, which is read anew each time
MAX_VALUE_CHARACTERS = 512  # of one value: each of its tokens may take a forward pass
DEFAULT_TEXT_TOKENS = 64  # of a free text without maxLength
MAX_TEXT_TOKENS = 1024  # of a free text with maxLength

Part = str | Field | FreeText


@dataclass(frozen=True, slots=True)
class SchemaForm:
    """Holds the form of a schema; its free texts are contents of JSON strings."""

    form: Form

    @property
    def lengths(self) -> Mapping[Path, int | None]:
        """Returns the maximum number of characters of each free text, by its path; None for no limit."""
        return {part.path: part.max_characters for part in self.form.parts if isinstance(part, FreeText)}


@dataclass(slots=True)
class Budget:
    """Counts what has been read of one schema, or of several that share the bounds."""

    schemas: int = 0
    values: int = 0
    characters: int = 0


def read_schema(schema: Any, place: str = "schema", budget: Budget | None = None) -> SchemaForm:
    """Returns the form of a JSON schema. It has all properties of an object, optional ones too, in the schema's order.

    place: the schema's name in messages; budget: what already counts against the bounds. Raises UserError for the
    first construct outside the subset or above a bound; the message begins with its path, which begins with `place`.
    """
    reader = _Reader(schema, place, budget or Budget())
    parts = reader.read(schema, place, (), 0, ())
    return SchemaForm(Form(tuple(_join_words(parts))))


def enclose(before: str, inner: SchemaForm, after: str, *path: str | int) -> SchemaForm:
    """Returns a schema's form with words before and after it. path: its document's path in the enclosing document."""
    parts = [part if isinstance(part, str) else replace(part, path=(*path, *part.path)) for part in inner.form.parts]
    return SchemaForm(Form(tuple(_join_words([before, *parts, after]))))


class _Reader:
    """Reads one schema and counts what it reads in `budget`."""

    def __init__(self, root: Any, place: str, budget: Budget) -> None:
        self._root, self._root_place, self._budget = root, place, budget

    def read(self, schema: Any, place: str, path: Path, depth: int, refs: tuple[str, ...]) -> list[Part]:
        """Returns the parts of a schema's JSON text. refs: the references that led to this schema."""
        self._budget.schemas += 1
        if self._budget.schemas > MAX_SCHEMAS:
            refuse(place, f"brings the schemas above {MAX_SCHEMAS}, references counted each time; expected fewer")
        if depth > MAX_DEPTH:
            refuse(place, f"is more than {MAX_DEPTH} schemas deep; flatten the schema")
        if not isinstance(schema, dict):
            refuse(place, f"is {describe_value(schema)}; expected a schema as an object")
        context = (place, path, depth + 1, refs)
        if "$ref" in schema:
            return self._read_reference(schema, *context)
        if "allOf" in schema and isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1:
            check_keywords(schema, place, frozenset(("allOf",)), not path)
            return self.read(schema["allOf"][0], f"{place}.allOf[0]", *context[1:])
        if "anyOf" in schema:
            return self._read_alternatives(schema, *context)
        if "enum" in schema or "const" in schema:
            return self._read_constants(schema, place, path)
        if isinstance(schema.get("type"), list):
            return self._read_several_types(schema, *context)
        return self._read_single_type(schema, *context)

    def _count_characters(self, count: int, place: str) -> None:
        self._budget.characters += count
        if self._budget.characters > MAX_CHARACTERS:
            refuse(place, f"brings the schema above {MAX_CHARACTERS} characters of names and values; expected fewer")

    def _read_reference(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        check_keywords(schema, place, frozenset(("$ref",)), not path)
        name = schema["$ref"]
        if not isinstance(name, str) or not name.startswith("#"):
            refuse(f"{place}.$ref", f"is {describe_value(name)}; expected one within the schema, as in #/$defs/Name")
        if len(name) > MAX_REFERENCE_CHARACTERS:
            refuse(f"{place}.$ref", f"has {len(name)} characters; expected at most {MAX_REFERENCE_CHARACTERS}")
        if name in refs or name == "#":
            refuse(
                f"{place}.$ref", f"is {describe_value(name)}, which holds itself; a form has a fixed number of fields"
            )
        target, target_place = self._root, self._root_place
        for step in name[1:].split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                refuse(f"{place}.$ref", f"is {describe_value(name)}, which the schema does not have")
            target, target_place = target[key], f"{target_place}{format_path_step(key)}"
        return self.read(target, target_place, path, depth, (*refs, name))

    def _read_alternatives(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        """Returns one field whose values are those of all alternatives."""
        check_keywords(schema, place, frozenset(("anyOf",)), not path)
        alternatives, texts = schema["anyOf"], list[str]()
        if not isinstance(alternatives, list) or not alternatives:
            refuse(f"{place}.anyOf", f"is {describe_value(alternatives)}; expected a list of schemas")
        for index, alternative in enumerate(alternatives):
            alternative_place = f"{place}.anyOf[{index}]"
            parts = self.read(alternative, alternative_place, path, depth, refs)
            texts += self._list_texts(parts, alternative_place)
        return self._make_field(texts, f"{place}.anyOf", path)

    def _list_texts(self, parts: Sequence[Part], place: str) -> Iterator[str]:
        """Returns all texts that the parts can form."""
        if any(isinstance(part, FreeText) for part in parts):
            refuse(place, "holds a free text next to alternatives; expected an enum, or a text without alternatives")
        choices = [
            (part,) if isinstance(part, str) else part.values for part in parts if not isinstance(part, FreeText)
        ]
        count = math.prod(map(len, choices))
        self._check_count(count, place)
        self._count_characters(sum(count // len(texts) * sum(map(len, texts)) for texts in choices), place)
        return ("".join(texts) for texts in product(*choices))

    def _read_several_types(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        """Reads a list of types, such as `"type": ["string", "null"]`, as alternatives, each with its own keywords."""
        names = schema["type"]
        check_types(names, place)
        if not names or any(not isinstance(name, str) or name not in TYPES for name in names):
            refuse(f"{place}.type", f"is {describe_value(names)}; expected some of {', '.join(TYPES)}")
        check_keywords(schema, place, frozenset({"type"}).union(*(TYPES[name] for name in names)), not path)
        alternatives: list[dict[str, Any]] = [
            {"type": name, **{key: value for key, value in schema.items() if key in TYPES[name]}} for name in names
        ]
        if len(alternatives) == 1:
            return self.read(alternatives[0], place, path, depth, refs)
        texts = [
            text
            for alternative in alternatives
            for text in self._list_texts(self.read(alternative, place, path, depth, refs), f"{place}.type")
        ]
        return self._make_field(texts, f"{place}.type", path)

    def _read_constants(self, schema: dict[str, Any], place: str, path: Path) -> list[Part]:
        check_keywords(schema, place, frozenset(("enum", "const", "type")), not path)
        if "enum" in schema and "const" in schema:
            refuse(f"{place}.const", "comes with an enum; expected one of them")
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not values:
            refuse(f"{place}.enum", f"is {describe_value(values)}; expected a list of values")
        self._check_count(len(values), f"{place}.enum")
        names, texts = schema.get("type"), list[str]()
        check_types(names, place)
        for index, value in enumerate(values):
            value_place = f"{place}.enum[{index}]" if "enum" in schema else f"{place}.const"
            if names is not None and not any(
                is_of_type(value, name) for name in (names if isinstance(names, list) else [names])
            ):
                refuse(value_place, f"is {describe_value(value)}, which is not of the type {describe_value(names)}")
            texts.append(format_value(value, value_place))
            self._count_characters(len(texts[-1]), value_place)
        return self._make_field(texts, f"{place}.enum", path)

    def _read_single_type(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        name = schema.get("type")
        if "type" not in schema:
            first = next((name for name in schema if name not in ANNOTATIONS | DEFINITIONS), None)
            expectation = "expected type, enum, const, anyOf or $ref"
            if first is None:
                refuse(place, f"has no type; {expectation}")
            refuse(f"{place}{format_path_step(first)}", f"comes without a type; {expectation}")
        if not isinstance(name, str) or name not in TYPES:
            advice = "; list its values in an enum" if name == "number" else ""
            refuse(f"{place}.type", f"is {describe_value(name)}; expected one of {', '.join(TYPES)}{advice}")
        check_keywords(schema, place, TYPES[name] | {"type"}, not path)
        if name == "object":
            return self._read_object(schema, place, path, depth, refs)
        if name == "array":
            return self._read_array(schema, place, path, depth, refs)
        if name == "string":
            return self._make_free_text(schema, place, path)
        if name == "integer":
            numbers = read_integers(schema, place)
            self._check_count(len(numbers), place)
            return self._make_field(map(str, numbers), place, path)
        return self._make_field(["true", "false"] if name == "boolean" else ["null"], place, path)

    def _read_object(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        properties, additional = schema.get("properties"), schema.get("additionalProperties", False)
        if properties is None and additional is False and "additionalProperties" in schema:
            properties = {}
        if not isinstance(properties, dict):
            refuse(
                f"{place}.properties", f"is {describe_value(properties)}; expected an object with the properties' names"
            )
        if not isinstance(additional, bool) or (additional and not properties):
            refuse(
                f"{place}.additionalProperties",
                f"is {describe_value(additional)}; expected false, as no others are written",
            )
        required = schema.get("required", [])
        if not isinstance(required, list) or any(
            not isinstance(name, str) or name not in properties for name in required
        ):
            refuse(f"{place}.required", f"is {describe_value(required)}; expected names of properties")
        parts: list[Part] = ["{"]
        for index, (name, property_schema) in enumerate(properties.items()):
            property_place = f"{place}.properties{format_path_step(name)}"
            parts.append(f"{',' if index else ''}{format_value(name, property_place)}:")
            self._count_characters(len(name), property_place)
            parts += self.read(property_schema, property_place, (*path, name), depth, refs)
        return [*parts, "}"]

    def _read_array(
        self, schema: dict[str, Any], place: str, path: Path, depth: int, refs: tuple[str, ...]
    ) -> list[Part]:
        prefix, items = schema.get("prefixItems", []), schema.get("items")
        if not isinstance(prefix, list):
            refuse(f"{place}.prefixItems", f"is {describe_value(prefix)}; expected a list of schemas")
        if not (items is None or items is False or isinstance(items, dict)):
            refuse(f"{place}.items", f"is {describe_value(items)}; expected one schema, or false")
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(prefix) if items is False else None)
        if type(least) is not int or least < 0 or least != most or type(most) is not int:
            problem = f"minItems {describe_value(least)} and maxItems {describe_value(most)}"
            refuse(place, f"has {problem}; expected the same number for both, as a form has a fixed number of fields")
        if least > len(prefix) and not isinstance(items, dict):
            refuse(f"{place}.minItems", f"is {least}, but schemas are given for {len(prefix)} items; give items")
        parts: list[Part] = ["["]
        for index in range(least):
            in_prefix = index < len(prefix)
            item_place = f"{place}.prefixItems[{index}]" if in_prefix else f"{place}.items"
            parts += [","] if index else []
            parts += self.read(prefix[index] if in_prefix else items, item_place, (*path, index), depth, refs)
        return [*parts, "]"]

    def _make_free_text(self, schema: dict[str, Any], place: str, path: Path) -> list[Part]:
        max_length = schema.get("maxLength")
        if max_length is not None and (type(max_length) is not int or max_length < 0):
            refuse(f"{place}.maxLength", f"is {describe_value(max_length)}; expected a whole number of characters")
        if max_length == 0:
            return ['""']
        tokens = DEFAULT_TEXT_TOKENS if max_length is None else min(max_length, MAX_TEXT_TOKENS)
        return ['"', FreeText(path, tokens, max_length), '"']

    def _make_field(self, texts: Iterable[str], place: str, path: Path) -> list[Part]:
        """Returns a field of these values, each once; if there is only one value, words."""
        values = drop_duplicates(texts)
        self._check_count(len(values), place)
        if len(values) == 1:
            return [values[0]]
        if (longest := max(map(len, values))) > MAX_VALUE_CHARACTERS:
            refuse(place, f"has a value of {longest} characters; expected at most {MAX_VALUE_CHARACTERS}")
        self._budget.values += len(values)
        if self._budget.values > MAX_ALL_VALUES:
            refuse(place, f"brings the values of all fields above {MAX_ALL_VALUES}; expected fewer")
        return [Field(path, values)]

    @staticmethod
    def _check_count(count: int, place: str) -> None:
        if count > MAX_VALUES:
            refuse(place, f"has {describe_value(count)} values; expected at most {MAX_VALUES}")


def _join_words(parts: Iterable[Part]) -> Iterator[Part]:
    """Yields the parts, with consecutive words joined."""
    words = ""
    for part in parts:
        if isinstance(part, str):
            words += part
            continue
        if words:
            yield words
        words = ""
        yield part
    if words:
        yield words
