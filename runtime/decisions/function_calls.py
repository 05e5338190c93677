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

NAME, ARGUMENTS = '{"name":', ',"arguments":'


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
    """Decides a call. functions: their arguments' schemas, by name; optional: whether no function may be called too."""
    if len(functions) == 1 and not optional:
        return _decide_arguments(model, prompt, functions, next(iter(functions)), **keywords)
    form = name_form(functions, optional)
    decided = model.decide_form(prompt, form, **keywords)
    fields = read_fields(form, decided)
    chosen: TypedDecision[Any] = TypedDecision(
        decided.text, None, fields, decided.forwards, decided.partial, decided.probability
    )
    name = fields[0].value if fields else None
    if name is None:
        return Call(None, "", chosen)
    most = keywords.get("max_forwards")
    if most is not None and most <= chosen.forwards:
        return Call(name, "", replace(chosen, partial=True))
    if most is not None:
        keywords["max_forwards"] = most - chosen.forwards
    call = _decide_arguments(model, prompt, functions, name, **keywords)
    whole = replace(
        call.decision, fields=(*chosen.fields, *call.decision.fields), forwards=chosen.forwards + call.decision.forwards
    )
    return replace(call, decision=whole)


def name_form(functions: Mapping[str, SchemaForm], optional: bool) -> Form:
    """Returns the form that chooses a function; it ends where the arguments would begin."""
    names = (*map(format_json, functions), *(["null"] if optional else []))
    return Form((NAME, Field(("name",), names), ARGUMENTS))


def make_call_form(name: str, arguments: SchemaForm) -> SchemaForm:
    """Returns the form of a call of the function `name`. arguments: the form of its arguments."""
    return enclose(f"{NAME}{format_json(name)}{ARGUMENTS}", arguments, "}", "arguments")


def _decide_arguments(
    model: Model, prompt: Prompt, functions: Mapping[str, SchemaForm], name: str, **keywords: Unpack[DecisionKeywords]
) -> Call:
    decision = decide_schema(model, prompt, make_call_form(name, functions[name]), **keywords)
    text = decision.text.removeprefix(f"{NAME}{format_json(name)}{ARGUMENTS}")
    return Call(name, text if decision.partial else text.removesuffix("}"), decision)
