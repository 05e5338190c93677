"""Tokenizers and chat templates with damage, the manifest's hashes made theirs: read, and texts taken through them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from corpus import PROMPT, copied, rehash, text_file
from mutants import of_bytes, of_json, of_text
from section import Section
from tally import tallied

from runtime.bundle.manifest import read
from runtime.bundle.store import verify_files
from runtime.text.tokenizer import Tokenizer

FULL = 6000
KINDS = (
    "tokenizer: values changed", "chat template: words changed", "tokenizer: bytes changed",
    "chat template: words changed", "tokenizer: values changed", "chat template: bytes changed",
    "tokenizer: values changed", "tokenizer: bytes changed, hash as it was",
)  # fmt: skip
WORDS = (
    "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{% if m %}", "{% else %}", "{% endif %}", "{{", "}}",
    "{%", "%}", "{#", "#}", "{% macro f(x) %}", "{% endmacro %}", "{{ f(1) }}", "{{ f }}", "{% set x = messages %}",
    "{{ x[0].content }}", "{{ m.__class__ }}", "{{ m['content'].__init__ }}", "{{ ''.join(x) }}", "| upper", "| tojson",
    "| length", "| items", "| attr('__class__')", "{{ range(9) | list }}", "{{ namespace(a=1) }}", "{% break %}",
    "{{ 'a' * 1000 }}", "{{ 1 / 0 }}", "{{ messages[9] }}", "{{ messages.pop() }}", "{% include 'x' %}",
    "{% import 'os' as os %}", "{% extends '/etc/passwd' %}", "{% call f() %}", "{% raw %}", "{% generation %}",
    "{{ cycler.__init__.__globals__ }}", "{{ lipsum() }}", "{{ strftime_now('%Y') }}", "{{ raise_exception('no') }}",
    "{{ self }}", "{{ (1,2,3)[:2] }}", "{{ none }}", "{{ m.content | int }}", "\x00", "\u202e", "😀", "<|mask|>",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 10 ** 10 }}",
    "{{ 9 ** (9 ** 9) }}", "{{ '%0999999999d' % 1 }}", "{{ [1] * 10 ** 10 }}", "{{ 'a' | center(10 ** 10) }}",
)  # fmt: skip
COMMON = len(WORDS) - 6  # the others end a process, so they are rare


def run(scale: float) -> Section:
    return tallied("Tokenizers and chat templates", "texts", int(FULL * scale), by_trial=True)


def kind(number: int) -> str:
    return KINDS[number % len(KINDS)]


def make(number: int, folder: Path) -> Path:
    rng, what = random.Random(f"text {number}"), kind(number)
    bundle = copied("ort.bundle", folder)
    file = text_file(bundle, "tokenizer" if what.startswith("tokenizer") else "chat_template")
    content = file.read_bytes()
    if "values" in what:
        content = of_json(rng, json.loads(content)).encode("utf-8", "surrogateescape")
    elif "words" in what:
        words = WORDS if rng.random() < 0.01 else WORDS[:COMMON]
        content = of_text(rng, content.decode(), words).encode()
    else:
        content = of_bytes(rng, content)
    file.write_bytes(content)
    if "as it was" not in what:
        rehash(bundle)
    return bundle


def attempt(number: int, folder: Path) -> str:
    made = read(make(number, folder))
    verify_files(made, made.find_engine(), "always")
    tokenizer = Tokenizer(made.tokenizer, made.chat_template)
    stream, text = tokenizer.stream(), f"{PROMPT} <|end|> naïve 😀"
    plain, chat = tokenizer.encode(text).tolist(), tokenizer.encode_chat(text).tolist()
    assert all(isinstance(token, int) and token >= 0 for token in [*plain, *chat]), (plain, chat)
    assert tokenizer.encode(text).tolist() == plain, "another encoding the second time"
    tokenizer.decode(plain)
    for token in plain:
        stream.push([token])
    stream.finish()
    return "encoded"
