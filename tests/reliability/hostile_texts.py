"""Chat templates that never end or reach for what is not theirs, tokenizers that pad or cut of their own accord."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from corpus import GOLDEN, PROMPT, copied, rehash, text_file

from runtime.open_bundle import load
from runtime.text.tokenizer import Tokenizer

Attack = Callable[[Path], object]  # raises UserError, or returns and has done nothing
LOOPS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 9 ** (9 ** 9) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10 ** 10 }}", "{{ [1] * 10 ** 10 }}", "{{ 'a' | center(10 ** 10) }}", "{{ '%0999999999999d' % 1 }}",
    "{{ lipsum(n=10 ** 7) }}", "{{ [1] | tojson(indent=10 ** 10) }}", "{{ 'a'.ljust(10 ** 10) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
)  # fmt: skip
REACHES = (
    "{{ messages.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ messages | attr('__class__') }}",
    "{{ cycler.__init__.__globals__ }}", "{{ self._TemplateReference__context }}", "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}", "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}", "{{ ('{0.__class__}' | replace('x', 'y')).format(messages) }}",
    "{{ messages | map(attribute='__class__') | list }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}",
    "{{ messages | sort(attribute='__class__.__mro__') }}", "{% include '/etc/passwd' %}", "{% extends 'a' %}",
    "{% import 'os' as os %}", "{{ joiner.__init__.__globals__ }}", "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}", "{{ (1).__class__.__base__.__subclasses__() }}", "{{ range.__self__ }}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}", "{{ messages.clear() }}", "{{ f.gi_frame }}",
)  # fmt: skip
TAKEN = ("<class", "built-in", "uid=", "root:", "function")  # what a template would say that got through
PAD = {
    "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>",
}  # fmt: skip
PADDINGS = tuple({**PAD, "strategy": strategy} for strategy in ({"Fixed": 10**12}, {"Fixed": 50}, "BatchLongest"))
CUTS = tuple(
    {"direction": "Right", "max_length": most, "strategy": "LongestFirst", "stride": 0} for most in (0, 1, 3)
)  # fmt: skip


def template(text: str) -> Attack:
    """Stopped or refused; where it is rendered, nothing of the process is in it."""

    def attack(folder: Path) -> None:
        bundle = copied("ort.bundle", folder)
        text_file(bundle, "chat_template").write_text(text)
        rehash(bundle)
        words = load(bundle, threads=1).tokenizer
        told = words.decode(words.encode_chat("x"))
        assert not any(taken in told for taken in TAKEN), told

    return attack


def tokenizer(part: str, settings: object) -> Attack:
    """The ids of a text are those without the setting."""

    def attack(folder: Path) -> None:
        bundle = copied("ort.bundle", folder)
        file = text_file(bundle, "tokenizer")
        file.write_text(json.dumps({**json.loads(file.read_text()), part: settings}))
        rehash(bundle)
        plain = Tokenizer(text_file(GOLDEN / "ort.bundle", "tokenizer")).encode(PROMPT).tolist()
        assert load(bundle, threads=1).tokenizer.encode(PROMPT).tolist() == plain

    return attack
