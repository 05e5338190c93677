"""Text to ids and back, whole and piece by piece; what a user writes is never a special token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speaking import BYTES, SPECIAL, encode_ids, make_byte_tokenizer, save_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from runtime.errors import UserError
from runtime.text import chat_template
from runtime.text.tokenizer import BROKEN, Tokenizer

TEXTS = [
    "plain, with  two spaces\nand\tlines\r\n",
    "naïve Grüße Ægir",
    "Привет Ελλάδα",
    "שלום עולם مرحبا",
    "नमस्ते ไทย",
    "你好，世界 日本語 한국어",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 combining, \u200b zero width, \u202e override",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    "\ufffd a replacement character of its own \ufffd",
    "nul \x00 and escape \x1b[31m",
]
TEMPLATE = "<|pad|>user: {{ messages[0]['content'] }}<|pad|>answer: "


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE whose merges cross the borders of characters."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        show_progress=False,
    )
    engine.train_from_iterator(TEXTS * 3, trainer)
    return Tokenizer(save_tokenizer(engine, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def single_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(save_tokenizer(make_byte_tokenizer(), tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(params=["trained", "single_bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_together_the_text(tokenizer: Tokenizer, text: str, size: int) -> None:
    ids, stream = tokenizer.encode(text).tolist(), tokenizer.stream()
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert sum(piece.count(BROKEN) for piece in pieces) <= text.count(BROKEN)
    assert "".join(pieces) + stream.finish() == text


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_pieces_of_any_bytes_are_what_all_of_them_decode_to(
    single_bytes: Tokenizer, data: bytes, cuts: list[int]
) -> None:
    ids, stream, text, start = [BYTES + byte for byte in data], single_bytes.stream(), "", 0
    for size in cuts * len(data):
        text += stream.push(ids[start : start + size])
        start += size
        assert text == single_bytes.decode(ids[:start]).rstrip(BROKEN)
    assert text + stream.finish() == single_bytes.decode(ids) == data.decode(errors="replace")


def test_an_emoji_is_held_back_until_its_last_byte(single_bytes: Tokenizer) -> None:
    stream = single_bytes.stream()
    assert [stream.push([token]) for token in encode_ids("a😀b")] == ["a", "", "", "", "😀", "b"]
    assert stream.finish() == ""


def test_a_character_that_is_never_finished_comes_out_broken_at_the_end(single_bytes: Tokenizer) -> None:
    stream = single_bytes.stream()
    assert stream.push(encode_ids("😀")[:3]) == ""
    assert stream.finish() == BROKEN


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_token_in_a_text_stays_text(tokenizer: Tokenizer, special: str) -> None:
    ids = tokenizer.encode(f"a{special}b")
    assert ids.min() >= BYTES
    assert tokenizer.decode(ids) == f"a{special}b"


def test_half_a_surrogate_pair_is_refused_in_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"half a surrogate pair at character 2\b") as caught:
        tokenizer.encode("a\ud83d")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", '{"model": {}}'])
def test_a_missing_or_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="is not a tokenizer") as caught:
        Tokenizer(path)
    assert "\n" not in str(caught.value)


def chat(tmp_path: Path, template: str) -> Tokenizer:
    return Tokenizer(save_tokenizer(make_byte_tokenizer(), tmp_path), template)


def test_a_chat_template_speaks_in_special_tokens_and_the_user_does_not(tmp_path: Path) -> None:
    tokenizer = chat(tmp_path, TEMPLATE)
    for message in ("hello", "an <|end|> of <|pad|> mine"):
        expected = [0, *encode_ids("user: " + message), 0, *encode_ids("answer: ")]
        assert tokenizer.encode_chat(message).tolist() == expected
    assert tokenizer.encode("hello").tolist() == encode_ids("hello")


def test_a_conversation_s_own_special_tokens_stay_text_in_every_turn(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|pad|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}<|end|>"
    for said in (("be kind", "hello", "hi", "hello"), ("a <|pad|>", "b", "c <|end|>", "b")):
        roles = ("system", "user", "assistant", "user")
        turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        expected = [id for turn in turns for id in (0, *encode_ids(f"{turn['role']}: {turn['content']}"))]
        assert chat(tmp_path, template).encode_messages(turns).tolist() == [*expected, 1]


def test_special_tokens_of_the_user_stay_text_in_generation_tags_and_beside_arguments(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% generation %}<|pad|>{{ m['content'] }}{% endgeneration %}{% endfor %}"
        "{% if brief %}<|end|>{% endif %}"
    )
    tokenizer = chat(tmp_path, template)
    for said in ("hello", "an <|end|> of mine"):
        turn = [{"role": "user", "content": said}]
        assert tokenizer.encode_messages(turn).tolist() == [0, *encode_ids(said)]
        assert tokenizer.encode_messages(turn, {"brief": True}).tolist() == [0, *encode_ids(said), 1]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ({"role": "<|end|>"}, {}), ({"role": "user", "name": "<|end|>"}, {}), ({"role": "user"}, {"a": "x<|end|>"}),
        ({"role": "user"}, {"a": [{"<|end|>": 1}]}),
    ],
)  # fmt: skip
def test_special_tokens_anywhere_but_in_a_message_s_content_are_refused(
    message: dict[str, str], arguments: dict[str, object], tmp_path: Path
) -> None:
    tokenizer = chat(tmp_path, "{{ messages }}{{ a }}")
    with pytest.raises(UserError, match=r"holds <\|end\|>; leave it out"):
        tokenizer.encode_messages([{**message, "content": "x"}], arguments)


def test_without_a_template_a_message_is_encoded_as_it_stands(single_bytes: Tokenizer) -> None:
    assert single_bytes.encode_chat("hello").tolist() == encode_ids("hello")
    for turns in ([{"role": "system", "content": "x"}], [{"role": "user", "content": "x"}] * 2):
        with pytest.raises(UserError, match="no chat template"):
            single_bytes.encode_messages(turns)


@pytest.mark.parametrize(
    ("template", "message", "reason"),
    [
        ("{{ messages[0]", "x", "unexpected end"),
        ("{{ raise_exception('no system role') }}", "x", "no system role"),
        ("{{ messages.__class__.__mro__ }}", "x", "unsafe"),
        ("{{ messages.append(1) }}", "x", "append"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "x", "recursion"),
        ("{{ range(10 ** 9) }}", "x", "range"),
        ("{{ ''.__init__.__globals__ }}", "x", "unsafe"),
        ("{{ (messages | attr('__class__')).mro() }}", "x", "unsafe"),
        ("{{ messages[0]['content'] | upper }}", "<|end|>", "leave them out"),
    ],
)
def test_a_template_that_fails_is_told_in_one_line(tmp_path: Path, template: str, message: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        chat(tmp_path, template).encode_chat(message)
    assert "\n" not in str(caught.value)


def test_a_missing_jinja2_is_told_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"pip install 'jinja2>=3\.1\.6'"):
        chat(tmp_path, TEMPLATE).encode_chat("hello")


@pytest.mark.parametrize(("installed", "refused"), [("3.1.5", True), ("3.1.6", False), ("3.2", False), ("3.10", False)])
def test_a_jinja2_with_ways_out_of_its_sandbox_runs_no_template(
    installed: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "version", lambda name: installed)
    tokenizer = chat(tmp_path, TEMPLATE)
    if refused:
        with pytest.raises(UserError, match=r"needs jinja2 3\.1\.6 or newer"):
            tokenizer.encode_chat("hello")
    else:
        assert len(tokenizer.encode_chat("hello"))
