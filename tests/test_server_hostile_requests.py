"""Requests made to keep the server from the others: work on them is linear, bounded, and beside everybody else's."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from threading import Event

import floods
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as some
from serving import Served, served, until
from speaking import make_speaker
from test_server_load import paced

from runtime.server import handler, intake, stop_strings
from runtime.server.http_errors import Refusal
from runtime.server.stop_strings import Stops
from runtime.text import tokenizer as text

SHORTEST = intake.SHORT + 1  # bytes of a body that waits for its turn


@pytest.mark.long
def test_health_is_answered_while_hostile_requests_come(tmp_path: Path) -> None:
    """The bound is for machines that do other work too; floods.py checks the strict one."""
    with floods.serving(tmp_path) as place:
        report = floods.measure(place, [*floods.SHAPES, *floods.WIRE])
    print(json.dumps(report))
    assert report["p99"] < 0.3 and report["worst"] < 1.0
    assert report["statuses"].keys() <= {200, 400, 404}


def test_many_messages_are_rendered_once_and_found_by_one_short_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_speaker(tmp_path, "hi", "ok", template=floods.TEMPLATE).tokenizer
    calls: list[str] = []
    render, split = text.render, text.re.split
    monkeypatch.setattr(text, "render", lambda *given: calls.append("render") or render(*given))
    monkeypatch.setattr(text.re, "split", lambda pattern, whole: calls.append(pattern) or split(pattern, whole))
    messages = [floods.user(f"{i} <|end|>") for i in range(2000)]
    ids = tokenizer.encode_messages(messages)
    assert [call for call in calls if call == "render"] == ["render"]
    assert [len(call) < 100 for call in calls if call != "render"] == [True]
    parts = [("<|pad|>user\n", f"{i} <|end|>", "<|end|>\n") for i in range(2000)]
    special, plain = tokenizer._special, tokenizer._plain
    expected: list[int] = []
    for before, own, after in parts:
        expected += special.encode(before).ids + plain.encode(own).ids + special.encode(after).ids
    assert ids.tolist() == expected + special.encode("<|pad|>assistant").ids  # jinja drops the last line end


PIECES = some.lists(some.text("ab", max_size=6), max_size=6)


@given(some.lists(some.text("ab", min_size=1, max_size=6), max_size=4), PIECES)
def test_stop_strings_are_found_as_a_plain_search_finds_them(strings: list[str], pieces: list[str]) -> None:
    whole, found, given_out = "", Stops(strings), ""
    for piece in pieces:
        whole += piece
        given_out += found.push(piece)
        ends = [(whole.find(string) + len(string), whole.find(string)) for string in strings if string in whole]
        assert found.hit == bool(ends)
        if ends:
            assert given_out == whole[: min(ends)[1]] and found.push("a") == ""
            return
        held = whole[len(given_out) :]  # the longest end that begins one of the strings
        begun = [n for string in strings for n in range(1, len(string)) if whole.endswith(string[:n])]
        assert whole.startswith(given_out) and len(held) == max(begun, default=0)
    assert given_out + found.finish() == whole


def test_a_long_stop_string_costs_a_few_comparisons_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, follow = [0], stop_strings._Prefix._find_next

    def counted(prefix: stop_strings._Prefix, length: int, character: str) -> int:
        steps[0] += 1
        return follow(prefix, length, character)

    monkeypatch.setattr(stop_strings._Prefix, "_find_next", counted)
    found = Stops(["a" * 1_000_000])
    assert not any(found.push("a" * 40) for _ in range(500)) and found.finish() == "a" * 20_000
    assert steps[0] <= 2 * 20_000


def test_json_is_read_as_the_standard_library_reads_it() -> None:
    value = {"a": ["[{" * 100_000, '\\"[', "é😀", 1, 2.5, None, True]}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert intake.parse_body(json.dumps(value, ensure_ascii=False).encode(encoding)) == value
    for broken in (b"", b"{", b"\xff\xff", b"[" * 5000, b"9" * 5000, b"\xef\xbb\xbf\xef\xbb\xbf1"):
        with pytest.raises(Refusal, match="cannot be read as JSON"):
            intake.parse_body(broken)
    twice = b'{"tools": [{"function": {"parameters": {"type": "object", "type": "string"}}}]}'
    with pytest.raises(Refusal, match=r"the body cannot be read as JSON \('type' occurs twice in one object\)"):
        intake.parse_body(twice)
    with pytest.raises(Refusal, match=r"\(-9999999999999999999\.\.\. is a whole number of 5000 digits, too many\)"):
        intake.parse_body(b"[-" + b"9" * 5000 + b"]")


def test_other_threads_may_run_between_two_fractions_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(intake, "_parse_float", lambda digits: calls.append(digits) or float(digits))
    assert intake.parse_body(b"[1e-400, 2.5, 7, NaN]")[:3] == [0.0, 2.5, 7] and calls == ["1e-400", "2.5"]


def test_a_body_of_more_lists_than_any_request_has_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = f"[{','.join(['[]'] * (intake.CONTAINERS - 1))}]"
    assert len(intake.parse_body(most.encode())) == intake.CONTAINERS - 1
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(Refusal, match="more than 65536 lists and objects"):
        intake.parse_body(f"[{most}]".encode())


def test_long_bodies_of_a_size_are_read_one_at_a_time_and_others_beside_them() -> None:
    def read(body: tuple[int, str]) -> str:
        running.append(body)
        most.append(sum(size == SHORTEST for size, _ in running))
        held[body[0]].wait()
        running.remove(body)
        return body[1]

    async def work() -> list[str]:
        entry = intake.Intake()
        first = [asyncio.create_task(entry.run(SHORTEST, lambda i=i: read((SHORTEST, str(i))))) for i in range(3)]
        assert await entry.run(100, lambda: read((100, "short"))) == "short"  # while the first one is held
        assert await entry.run(8 * SHORTEST, lambda: read((100, "longer"))) == "longer"
        held[SHORTEST].set()
        return await asyncio.gather(*first)

    held, running, most = {SHORTEST: Event(), 100: Event()}, [], []
    held[100].set()
    assert asyncio.run(work()) == ["0", "1", "2"] and max(most) == 1


def test_more_long_bodies_than_may_be_held_are_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_HELD", 0)
    with pytest.raises(Refusal) as refused:
        asyncio.run(intake.Intake().run(SHORTEST, lambda: None))
    assert refused.value.status == 429 and refused.value.headers["retry-after"] == "1"


def test_a_full_queue_refuses_before_a_prompt_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, script = paced(tmp_path, "hi", "abcd")
    with served(model, room=1) as server:
        sent = [open_request(server, b'{"prompt": "hi"}') for _ in range(2)]
        until(lambda: server.service.workers.running == server.service.workers.waiting == 1)
        monkeypatch.setattr(handler, "parse_body", None)
        assert server.post(b"not JSON").status_code == 429
        script.let(1000)
        for connection in sent:
            connection.close()


def open_request(server: Served, body: bytes) -> socket.socket:
    """A connection with a request on it."""
    connection = socket.create_connection(httpx.URL(server.url).netloc.decode().split(":"), timeout=30)
    connection.sendall(floods.HEAD.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_long_names_are_cut_in_what_a_refusal_says(tmp_path: Path) -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    with served(make_speaker(tmp_path, "hi", "ok")) as server:
        for path, body in (
            (floods.RAW, {"prompt": "hi", "x" * 100_000: 1}),
            (floods.RAW, {"prompt": "hi", "model": "x" * 100_000}),
            (floods.RAW, {"prompt": "hi", "model": deep}),
            (floods.CHAT, {"messages": [{"role": "x" * 100_000, "content": "a"}]}),
            (floods.CHAT, {"messages": [{"role": deep, "content": "a"}]}),
            (floods.CHAT, {"messages": [{"role": "user", "content": "a", "x" * 100_000: 1}]}),
        ):
            answer = server.post(body, path)
            assert answer.status_code in (400, 404) and len(answer.content) < 1000


def test_a_body_in_chunks_of_one_byte_is_read_and_too_many_headers_are_not(tmp_path: Path) -> None:
    with served(make_speaker(tmp_path, "hi", "ok")) as server:
        place = httpx.URL(server.url)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt": "hi"}' + b" " * 5000)
        head = floods.HEAD.encode()
        whole = head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        assert floods.post((place.host, place.port), whole)[0] == 200
        many = head + b"a: b\r\n" * 4000 + b"content-length: 0\r\n\r\n"
        assert floods.post((place.host, place.port), many)[0] in (0, 400)
