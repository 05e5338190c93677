"""Decides function calls: which function is called, if any, and with which arguments.

A call is the text `{"name":"…","arguments":{…}}`. If there is a choice, the name is decided first, with
`,"arguments":` pinned after it; the name `null` calls no function. The arguments are then decided with the name pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..decoding.options import Prompt
from .document import TypedDecision, read_fields
from .form import Field, Form
from .keywords import format_json
from .schema import SchemaForm, enclose
from .typed import DecisionKeywords, decide_schema

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

    from ..model import Model

NAME_KEY, ARGUMENTS_KEY = '{"name":', ',"arguments":'


@dataclass(frozen=True, slots=True)
class Call:
    """Holds a decided call. name: the function's, None for no call or if the decision ended before the name.

    arguments: JSON text, "" without a name. decision: the call's text, and its fields at the paths `name` (if there
    was a choice) and `arguments`.
    """

    name: str | None
    arguments: str
    decision: TypedDecision[Any]


def decide_call(
    model: Model,
    prompt: Prompt,
    functions: Mapping[str, SchemaForm],
    optional: bool,
    **keywords: Unpack[DecisionKeywords],
) -> Call:
    """Decides a call.

    functions: the form of each function's arguments, by the function's name. optional: whether the model may also
    choose to call no function.
    """
    if len(functions) == 1 and not optional:
        return _decide_arguments(model, prompt, functions, next(iter(functions)), **keywords)
    form = make_name_form(functions, optional)
    decision = model.decide_form(prompt, form, **keywords)
    fields = read_fields(form, decision)
    name_decision: TypedDecision[Any] = TypedDecision(
        decision.text, None, fields, decision.forwards, decision.partial, decision.probability
    )
    name = fields[0].value if fields else None
    if name is None:
        return Call(None, "", name_decision)
    max_forwards = keywords.get("max_forwards")
    if max_forwards is not None and max_forwards <= decision.forwards:
        return Call(name, "", replace(name_decision, partial=True))
    if max_forwards is not None:
        keywords["max_forwards"] = max_forwards - decision.forwards
    call = _decide_arguments(model, prompt, functions, name, **keywords)
    fields, forwards = (*fields, *call.decision.fields), decision.forwards + call.decision.forwards
    return replace(call, decision=replace(call.decision, fields=fields, forwards=forwards))


def make_name_form(functions: Mapping[str, SchemaForm], optional: bool) -> Form:
    """Returns the form that chooses a function; it ends before the arguments."""
    names = (*map(format_json, functions), *(["null"] if optional else []))
    return Form((NAME_KEY, Field(("name",), names), ARGUMENTS_KEY))


def make_call_form(name: str, arguments: SchemaForm) -> SchemaForm:
    """Returns the form of a call of the function `name`. arguments: the form of its arguments."""
    return enclose(f"{NAME_KEY}{format_json(name)}{ARGUMENTS_KEY}", arguments, "}", "arguments")


def _decide_arguments(
    model: Model, prompt: Prompt, functions: Mapping[str, SchemaForm], name: str, **keywords: Unpack[DecisionKeywords]
) -> Call:
    decision = decide_schema(model, prompt, make_call_form(name, functions[name]), **keywords)
    text = decision.text.removeprefix(f"{NAME_KEY}{format_json(name)}{ARGUMENTS_KEY}")
    return Call(name, text if decision.partial else text.removesuffix("}"), decision)
