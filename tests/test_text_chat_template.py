"""Chat templates: what transformers renders is rendered alike, and what it cannot render is refused."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import pytest

from runtime.errors import UserError
from runtime.text.chat_template import add_arguments, add_defaults, check, check_arguments, render

SYSTEM = {"role": "system", "content": ' Be <brief> & "kind". '}
USER = {"role": "user", "content": "  How many apples?\n"}
SAID = {"role": "assistant", "content": "<think>\ncount\n</think>\n\n3 'apples' 你好"}
CONVERSATIONS = (
    [USER],
    [SYSTEM, USER],
    [USER, SAID, USER],
    [SYSTEM, USER, SAID, {**USER, "name": "Ann", "gone": None}],
)

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CONSTRUCTS = {
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation, trimmed": "{%- for m in messages -%}\n {%- generation -%} \n{{ loop.index }} x\n{%- endgeneration %}\n"
    "{%- endfor -%}",
    "generation, a scope of its own": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "break and continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index0 >= 1 %}{% break %}{% endif %}{% endfor %}",
    "a namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.found }}",
    "a namespace of a dict": "{% set ns = namespace({'a': 1}, self=2) %}{{ ns.a }}{{ ns.self }}",
    "a namespace with an underscore": "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "a namespace with an underscore set": "{% set ns = namespace() %}{% set ns._a = 1 %}{{ ns._a }}",
    "macros": "{% macro turn(m, end='<end>') -%}\n{{ m.role | upper }}: {{ m.content | trim }}{{ end }}{{ caller() if "
    "caller }}\n{%- endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}{% call turn(messages[0]) %}!"
    "{% endcall %}",
    "slices": "{{ messages[::-1] | map(attribute='role') | join(',') }}{% for m in messages[1:] %}{{ m.content }}"
    "{% endfor %}{{ messages[-1]['content'][:5] }}",
    "text methods": "{% for m in messages %}{{ m.content.strip() }}|"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}|"
    "{{ m.content.startswith('<think>') }}{{ m.content.rstrip() }}{{ m.content.replace('a', 'b') }}{% endfor %}",
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=4) }}{{ m | tojson(ensure_ascii=true) }}"
    "{{ m | tojson(separators=(',', ':'), sort_keys=true) }}{{ m | tojson(True, 2) }}{% endfor %}",
    "tojson of nothing": "{{ missing | tojson }}",
    "tojson, an unknown option": "{{ messages | tojson(cls=1) }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | map('trim') | list | "
    "join(' / ') }}{{ messages | rejectattr('role', '==', 'user') | list | length }}{{ messages | first | tojson }}"
    "{{ messages | last | items | list }}{{ messages[0] | dictsort }}{{ '<b>' | e }}{{ [3, 1, 2] | sort | join }}"
    "{{ 'x' | default('y') }}{{ none | default('y', true) }}{{ messages | groupby('role') | length }}",
    "tests": "{{ messages is iterable }}{{ messages[0].content is string }}{{ messages[0] is mapping }}"
    "{{ x is defined }}"
    "{{ tools is none }}{{ documents is none }}{{ 2 is odd }}{{ 'a' in 'abc' }}{{ add_generation_prompt is true }}",
    "undefined": "{{ x }}|{{ messages[0].x }}|{{ messages[0]['x'] }}|{% if x %}1{% else %}0{% endif %}"
    "{% for a in x %}{% endfor %}",
    "undefined of undefined": "{{ x.y }}",
    "absent keys": "{% for m in messages %}{{ m.gone is defined }}{{ 'gone' in m }}"
    "{{ m.name | default('-') }}{% endfor %}",
    "set blocks": "{% set text %}  {{ messages[0].content }}\n{% endset %}{{ text | trim | length }}{{ text }}",
    "white space": "  {% if messages %}\n    {%- set a = 1 %}\n  x\n  {% endif %}\n\t{# note #}\n y {{- 1 -}} z\n",
    "date": "{{ strftime_now('%Y') }}{{ strftime_now(format='%Y') }}",
    "raise": "{{ raise_exception('no: ' + messages[0].role) }}",
    "raise for a system message": "{% if messages[0].role == 'system' %}{{ raise_exception(message='no system') }}"
    "{% endif %}" + TURNS,
    "dict": "{{ dict(a=1, b=messages | length) | tojson }}{{ dict.fromkeys(['a', 'b'], 0) | tojson }}",
    "dict, changed": "{{ dict.update(messages[0], {'role': 'x'}) }}",
    "dict of messages": "{% set m = dict(messages[0], content='x') %}{{ m.content }}{{ messages[0].content }}",
    "append": "{{ messages.append(1) }}",
    "change": "{{ messages[0].update({'role': 'x'}) }}",
    "do": "{% do messages %}",
    "include": "{% include 'x' %}",
    "unknown tag": "{% generate %}",
    "unknown filter": "{{ messages | to_json }}",
    "unknown filter, not reached": "{% if tools %}{{ messages | to_json }}{% endif %}x",
    "loops": "{% for m in messages recursive %}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}"
    "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{% else %}none{% endfor %}"
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "loops with conditions": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{% endfor %}"
    "{{ range(3) | list }}",
    "arithmetic": "{{ (loop_count | default(3)) // 2 }}{{ 7 % 4 }}{{ 'a' ~ 1 }}{{ 'a' * 3 }}"
    "{{ '%s-%d' | format('x', 3) }}"
    "{{ 'x' if tools else 'y' }}{{ not tools }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
}  # fmt: skip
# Published templates' ways, in words of our own.
FAMILIES = {
    "Qwen2.5": "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools' }}\n{%- else %}\n"
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
    "        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or "
    "(message.role == \"assistant\" and not message.tool_calls) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "Qwen3": "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    "    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and "
    "not(message.content.startswith('<tool_response>')) %}\n        {%- set ns.multi_step_tool = false %}\n"
    "        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- for message in messages %}\n    {%- if message.content is string %}\n"
    "        {%- set content = message.content %}\n    {%- else %}\n        {%- set content = '' %}\n    {%- endif %}\n"
    "    {%- if message.role == 'assistant' %}\n        {%- set reasoning = '' %}\n"
    "        {%- if message.reasoning_content is string %}\n"
    "            {%- set reasoning = message.reasoning_content %}\n        {%- elif '</think>' in content %}\n"
    "            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
    "        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}\n"
    "            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n"
    "        {%- else %}\n            {{- content }}\n        {%- endif %}\n    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}",
    "Llama 3": "{{- bos_token }}\n"
    "{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n"
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n    {%- else %}\n"
    "        {%- set date_string = \"26 Jul 2024\" %}\n    {%- endif %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n{{- system_message }}\n"
    "{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n"
    "        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant' }}\n{%- endif %}\n",
    "Mistral": "{%- if messages[0][\"role\"] == \"system\" %}\n"
    "    {%- set system_message = messages[0][\"content\"] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{%- set user_messages = loop_messages | selectattr(\"role\", \"equalto\", \"user\") | list %}\n"
    "{%- set ns = namespace(index=0) %}\n{%- for message in loop_messages %}\n"
    "    {%- if not (message.role == \"tool\" or "
    "(message.tool_calls is defined and message.tool_calls is not none)) %}\n"
    "        {%- if (message[\"role\"] == \"user\") != (ns.index % 2 == 0) %}\n"
    "            {{- raise_exception(\"roles must alternate\") }}\n        {%- endif %}\n"
    "        {%- set ns.index = ns.index + 1 %}\n    {%- endif %}\n{%- endfor %}\n{{- bos_token }}\n"
    "{%- for message in loop_messages %}\n    {%- if message[\"role\"] == \"user\" %}\n"
    "        {%- if loop.last and system_message is defined %}\n"
    "            {{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n"
    "        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}\n        {%- endif %}\n"
    "    {%- elif message[\"role\"] == \"assistant\" %}\n"
    "        {{- \" \" + message[\"content\"]|trim + eos_token}}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if user_messages | length == 0 %}{{ raise_exception('none') }}{% endif %}",
    "SmolLM3": "{% set xml_tools = '' %}{%- if enable_thinking is not defined -%}\n{%- set enable_thinking = true -%}\n"
    "{%- endif -%}\n{%- if messages[0].role == 'system' -%}\n  {%- set system = messages[0].content -%}\n"
    "  {%- if '/no_think' in system -%}{%- set mode = '/no_think' -%}{%- endif -%}\n"
    "  {%- set custom = system.replace('/no_think', '').rstrip() -%}\n{%- endif -%}\n"
    "{%- set today = strftime_now('%d %B %Y') -%}\n{{ today }}{{ mode if mode is defined else '-' }}{{ custom }}\n"
    "{%- for message in messages -%}\n  {%- set content = message.content if message.content is string else '' -%}\n"
    "  {%- if message.role == 'assistant' -%}\n    {%- generation -%}\n"
    "      {{ '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}\n    {%- endgeneration -%}\n"
    "  {%- else -%}\n    {{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n  {%- endif -%}\n"
    "{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
    "  {{ '<|im_start|>assistant\\n' + ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}\n{%- endif -%}\n",
    "Phi": "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message "
    "and message['tools'] is not none %}{{ message['tools'] }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    "Gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + "
    "'\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + (m['content'] | trim)"
    " + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
    "LLaDA": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start|>' + "
    "message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}",
}  # fmt: skip
TEMPLATES = {**CONSTRUCTS, **FAMILIES}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}  # as transformers hands them to a template
ARGUMENTS: list[dict[str, Any]] = [
    {}, {"enable_thinking": False}, {"enable_thinking": True, "date_string": "1 May 2025"},
    {"x": {"y": [1, None, "é"]}}, {"tool_mode": None, "n": 1.5, "x": "a \"quoted\" {% endif %} \\ \n 'text' </s>"},
]  # fmt: skip


def theirs(template: str, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str | None:
    """What transformers renders, None if it fails."""
    from transformers.utils.chat_template_utils import render_jinja_template

    # As apply_chat_template calls it.
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        (text,), _ = render_jinja_template([kept], chat_template=template, add_generation_prompt=True, **arguments)
        return str(text)
    except Exception:
        return None


def ours(template: str, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str | None:
    try:
        return render(template, messages, arguments)
    except UserError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_transformers_renders_is_rendered_alike_and_what_it_refuses_is_refused(name: str) -> None:
    template = TEMPLATES[name]
    for messages in CONVERSATIONS:
        for arguments in ARGUMENTS:
            given = {**TOKENS, **arguments}
            assert ours(template, messages, given) == theirs(template, messages, given)


def test_the_templates_above_are_rendered_but_for_those_meant_to_fail() -> None:
    failing = {name for name in TEMPLATES if ours(TEMPLATES[name], CONVERSATIONS[0], TOKENS) is None}
    assert failing == {
        "a namespace with an underscore", "a namespace with an underscore set", "tojson of nothing",
        "tojson, an unknown option", "undefined of undefined", "raise", "dict, changed", "append", "change", "do",
        "include", "unknown tag", "unknown filter",
    }  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_default_arguments_are_those_of_a_call_that_gives_them(name: str) -> None:
    template = TEMPLATES[name]
    for messages in CONVERSATIONS:
        for arguments in ARGUMENTS:
            written = add_defaults(template, {**TOKENS, **arguments})
            assert ours(written, messages, {}) == ours(template, messages, {**TOKENS, **arguments})


@pytest.mark.parametrize("extra", [{"reasoning": "r"}, {"thinking": "t"}, {"reasoning_content": "c", "thinking": "t"}])
def test_reasoning_is_found_under_each_of_its_names(extra: dict[str, str]) -> None:
    messages = [USER, {**SAID, **extra}]
    assert ours(TEMPLATES["reasoning"], messages, {}) == theirs(TEMPLATES["reasoning"], messages, {}) != ""


def test_the_date_is_today() -> None:
    before, found = datetime.now(), render("{{ strftime_now('%Y %m %d') }}", [USER])
    assert found in {time.strftime("%Y %m %d") for time in (before, datetime.now())}


def test_the_messages_are_as_they_were_whatever_a_template_does() -> None:
    messages = [{"role": "user", "content": "x", "parts": [{"a": None}]}]
    assert render("{{ messages[0].parts }}", messages) == "[{'a': None}]"
    assert messages == [{"role": "user", "content": "x", "parts": [{"a": None}]}]


def test_objects_that_are_not_json_reach_no_template() -> None:
    with pytest.raises(UserError, match="holds object; expected JSON values"):
        render("{{ messages[0].content }}", [{"role": "user", "content": object()}])


READING = "{{ enable_thinking }}/{{ budget }}/{% macro m() %}{{ enable_thinking }}{% endmacro %}{{ m() }}"


def test_arguments_of_a_call_overrule_newer_defaults_and_these_older_ones() -> None:
    template = add_arguments(READING, {"enable_thinking": False, "budget": None})
    assert render(template, [USER]) == "False/None/False"
    template = add_arguments(template, {"enable_thinking": True})
    assert render(template, [USER]) == "True/None/True"
    assert render(template, [USER], {"enable_thinking": "no", "budget": 3}) == "no/3/no"


def test_defaults_leave_the_template_s_first_line_where_it_was() -> None:
    template = "  {% if true %}\n x\n  {% endif %}\n"
    assert render(add_defaults(template, {"a": 1, "b": "\n"}), [USER]) == render(template, [USER])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([1], "are list; expected an object"),
        ({"messages": []}, "messages is given by the renderer itself"),
        ({"add_generation_prompt": False}, "add_generation_prompt is given by the renderer"),
        ({"tools": []}, "tools is given by the renderer"),
        ({"a b": 1}, "'a b' is not a variable's name"),
        ({"a %}{{ 1 }}": 1}, "is not a variable's name"),
        ({"a": {1, 2}}, "not JSON values"),
        ({"a": float("nan")}, "not JSON values"),
        ({"a": "\ud800"}, "not JSON values"),
    ],
)
def test_arguments_that_no_template_can_be_given_are_refused_in_one_line(arguments: Any, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        check_arguments(arguments)


def test_arguments_nested_beyond_all_stacks_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match="not JSON values"):
        check_arguments({"a": deep})


def test_an_argument_that_the_template_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="does not read enable_thinkin; check the spelling"):
        add_arguments(READING, {"enable_thinkin": False})
    with pytest.raises(UserError, match="no chat template to give arguments to"):
        add_arguments(None, {"enable_thinking": False})


def test_a_template_that_renders_no_conversation_is_refused_and_one_that_renders_some_is_not() -> None:
    check("{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}{% endif %}x")
    check("{% if messages | length < 3 %}{{ raise_exception('an example first') }}{% endif %}x")
    check(TEMPLATES["generation"])
    for template, reason in (
        ("{% generate %}", "unknown tag 'generate'"), ("{{ messages | to_json }}", "No filter named 'to_json'"),
        ("{{ raise_exception('never') }}", "never"), ("{{ x.y }}", "'x' is undefined"),
        ("{% if %}", "cannot be rendered"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason) as caught:
            check(template)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, True, -1.5, 1e300, "a\"'\\\n{%}}é😀\u2028", [], {"a": [None, {"b": "c"}]}])
def test_any_json_value_is_a_default_argument(value: Any) -> None:
    rendered = render(add_defaults("{{ a | tojson }}", {"a": value}), [USER])
    assert json.loads(rendered) == value
