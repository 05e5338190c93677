"""Renders chat templates as transformers does (`utils/chat_template_utils.py`, 5.23), in jinja2's sandbox.

A template is a program, and may come from a stranger. It reads the messages and arguments, such as Qwen3's
`enable_thinking`. Default values of arguments are written as the template's first lines, so that they stay with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ..errors import UserError, describe_error

JINJA = [3, 1, 6]  # the first version without a known escape from its sandbox
# Names that no argument may have: the renderer sets them, or they are parameters of apply_chat_template and vLLM.
RESERVED = (
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
)  # fmt: skip
LARGEST = 64 << 10  # bytes of arguments as JSON, so that they fit into a bundle's template next to its text
REASONING = ("reasoning_content", "thinking", "reasoning")  # a message's field, by client; templates read the first two
USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
TRIED = ([USER], [SYSTEM, USER], [USER, {"role": "assistant", "content": "Hello."}, USER])

Message = Mapping[str, Any]  # `role`, `content` and whatever else the template reads
Arguments = Mapping[str, Any]  # JSON values by name


def render(template: str, messages: Sequence[Message], arguments: Arguments | None = None) -> str:
    """Renders a template for a conversation, up to the beginning of the assistant's turn.

    Raises UserError if jinja2 is missing or the template fails.
    """
    _check_jinja("go without it (--raw)")
    try:
        return _render(template, messages, arguments or {})
    except Exception as error:  # a template is a program, and may raise anything
        raise UserError(
            f"the bundle's chat template fails ({describe_error(error, 300)}); correct it, or go without it (--raw)"
        ) from None


def check(template: str) -> None:
    """Raises UserError if none of the conversations TRIED can be rendered.

    One is enough: some templates refuse conversations without, for example, a system message.
    """
    _check_jinja("take it out of the checkpoint")
    reasons = []
    for messages in TRIED:
        try:
            _render(template, messages, {})
            return
        except Exception as error:
            reasons.append(describe_error(error, 300))
    raise UserError(
        f"the checkpoint's chat template cannot be rendered ({reasons[0]}), which transformers refuses too; correct "
        "chat_template.jinja or chat_template in tokenizer_config.json, or take it out"
    )


def check_arguments(arguments: Any) -> dict[str, Any]:
    """Returns the arguments. Raises UserError unless they are JSON values under names that a template can read."""
    if not isinstance(arguments, dict):
        raise UserError(
            f'the template arguments are {type(arguments).__name__}; expected an object: {{"enable_thinking": false}}'
        )
    for name in arguments:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"template argument {name!r} is not a variable's name; expected one, as enable_thinking")
        if name in RESERVED:
            raise UserError(f"template argument {name} is given by the renderer itself; leave it out")
    try:
        size = len(json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the template arguments are not JSON values ({error}); expected JSON values") from None
    if size > LARGEST:
        raise UserError(f"the template arguments have {size} bytes as JSON; expected at most {LARGEST}")
    return arguments


def add_arguments(template: str | None, arguments: Arguments) -> str:
    """Returns the template with these default arguments.

    Raises UserError for an argument that `check_arguments` refuses or that the template does not read.
    """
    if template is None:
        raise UserError("there is no chat template to give arguments to; leave --template-args out")
    for name in check_arguments(arguments):
        if not reads(template, name):
            raise UserError(f"the chat template does not read {name}; check the spelling, or leave it out")
    return add_defaults(template, arguments)


def add_defaults(template: str, arguments: Arguments) -> str:
    """Returns the template with defaults, which override its older ones; arguments given to `render` override them."""
    # The newline is not printed (trim_blocks). It puts the template's own text at the start of a line, since
    # lstrip_blocks strips only there.
    lines = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_format_literal(value)} %}}{{% endif %}}\n"
        for name, value in arguments.items()
    )
    return lines + template


def reads(template: str, name: str) -> bool:
    """Returns whether a template mentions a variable."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _render(template: str, messages: Sequence[Message], arguments: Arguments) -> str:
    given = {**_copy_plain(arguments), "tools": None, "documents": None, "add_generation_prompt": True}
    return str(_compile(template).render({**given, "messages": [_copy_message(message) for message in messages]}))


def _copy_message(message: Message) -> dict[str, Any]:
    """Returns a copy without null values, which templates would print as `none`, and with reasoning under both names
    that templates read."""
    found = {key: _copy_plain(value) for key, value in message.items() if value is not None}
    reasoning = next((found[key] for key in REASONING if key in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _copy_plain(value: Any) -> Any:
    """Returns a copy in JSON's types, since the sandbox does not know which methods of other types do harm."""
    if isinstance(value, Mapping):
        return {_copy_plain(key): _copy_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_copy_plain(each) for each in value]
    for kind in (str, int, float):  # members of enums, and numpy's scalars, may be subclasses of these
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value) if kind is not str else str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"a message or argument holds {type(value).__name__}; expected JSON values")


def _format_literal(value: Any) -> str:
    """Returns a JSON value as a literal of jinja2: as in JSON, except for null, which is none."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_literal(key)}: {_format_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_format_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def can_render() -> bool:
    """Returns whether jinja2 is here and not older than JINJA; without it no template is rendered.

    Does not import it: every load of a bundle with a template calls this, and few of them render.
    """
    try:
        return find_spec("jinja2") is not None and [int(n) for n in re.findall(r"\d+", version("jinja2"))] >= JINJA
    except PackageNotFoundError:
        return False


def _check_jinja(way_out: str) -> None:
    """Raises UserError unless jinja2 `can_render`. way_out: ends the message with what to do instead."""
    if not can_render():
        needed = ".".join(map(str, JINJA))
        raise UserError(
            f"there is a chat template, which needs jinja2 {needed} or newer; pip install 'jinja2>={needed}', or "
            f"{way_out}"
        )


@lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _make_generation()]
    )
    environment.globals |= _make_globals()
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _make_generation() -> Any:
    """Returns the jinja2 extension for `{% generation %} ... {% endgeneration %}`, which renders the body.

    Trainers find the assistant's turns by these tags.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call block, not only its body: variables set inside are not seen outside, as in transformers.
            return nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

        def text(self, caller: Any) -> Any:
            return caller()

    return Generation


def _make_globals() -> dict[str, Any]:
    """Returns the names that transformers adds to jinja2's, and replacements of jinja2's `dict` and `namespace`.

    The originals have methods and attributes that a stranger's template should not reach.
    """
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Values(Namespace):
        def __init__(*own: Any, **values: Any) -> None:  # so that a value may be named self
            self, *rest = own
            given = dict(*rest, **values)
            for name in given:
                _refuse(name)
            Namespace.__init__(self, given)

        def __setitem__(self, name: Any, value: Any) -> None:
            _refuse(name)
            super().__setitem__(name, value)

    def _refuse(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"{name!r} begins with an underscore, which a namespace's values may not")

    return {"raise_exception": raise_exception, "strftime_now": _format_now, "dict": _Dict(), "namespace": Values}


def _format_now(format: str) -> str:
    return datetime.now().strftime(format)


class _Dict:
    """Replaces `dict` in templates; its one method is harmless."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Writes JSON for the filter `tojson`; jinja2's own escapes HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
