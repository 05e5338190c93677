"""Tokens in several files of a directory get the ids that transformers gives, or one line names the disagreement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speaking import make_byte_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from runtime.errors import UserError
from runtime.text.tokenizer import Tokenizer
from train.huggingface.token_merging import QWEN2_SPLIT
from train.huggingface.tokenizer_files import read_text

CONFIG, ADDED, MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
START, END, TURN, NEW = "<|start|>", "<|eos|>", "<|Turn|>", "<new>"
TEMPLATE = (
    "{{ bos_token }}<|Turn|> {{ messages[0].content }} <new> x<|turn|>{{ turn_token }}|{{ eos_token }}{{ pad_token }}"
    "{{ unk_token }}{% if mask_token is defined %}m{{ mask_token }}{% endif %} <|start|> {{ sep_token }}"
)
TEXTS = ("hello There", f"a {TURN} b{NEW}c {START}<|turn|> d", f"{NEW} {END}\n x")
Files = dict[str, Any]  # what a case changes: by name, the object or the text of a file
Change = Callable[[Files, int], object]  # of the files and the first free id


def bytes_engine() -> Engine:
    """A byte-level BPE in the layout of Qwen's."""
    engine = make_byte_tokenizer()
    engine.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return engine


def pieces_engine() -> Engine:
    """A BPE over words that begin with a metaspace, as sentencepiece has it, with a normalizer that folds case."""
    letters = "▁abcdefghijklmnopqrstuvwxyz<>|\n"
    vocab = {"<unk>": 0, **{letter: i for i, letter in enumerate(letters, 1)}, "th": 40, "▁th": 41, "<base>": 42}
    vocab |= {f"<0x{i:02X}>": 43 + i for i in range(256)}
    spare = iter(range(len(letters) + 1, 40))
    vocab |= {f"<spare{i}>": i for i in spare}
    merges = [("t", "h"), ("▁", "th")]
    engine = Engine(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    engine.decoder = decoders.Metaspace(prepend_scheme="first")
    return engine


ENGINES = {"bytes": bytes_engine, "pieces": pieces_engine}


def token(content: str, **flags: bool) -> dict[str, Any]:
    """A token as added_tokens_decoder has it."""
    return {
        "content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
        "special": True, **flags,
    }  # fmt: skip


def typed(content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json has it under a name."""
    return {"__type": "AddedToken", **token(content, **flags)}


def own(files: Files) -> dict[str, dict[str, Any]]:
    """tokenizer.json's added tokens, as added_tokens_decoder has them."""
    return {
        str(each["id"]): {k: v for k, v in each.items() if k != "id"}
        for each in files["tokenizer.json"]["added_tokens"]
    }


def config(**changes: Any) -> Change:
    return lambda files, free: files[CONFIG].update(changes)


def decoder(*tokens: dict[str, Any], first: int = 0, reverse: bool = False) -> Change:
    """added_tokens_decoder with tokenizer.json's tokens and these, from the first free id (or one `first` beyond)."""

    def change(files: Files, free: int) -> None:
        more = [(str(free + first + i), each) for i, each in enumerate(tokens)]
        files[CONFIG]["added_tokens_decoder"] = {**own(files), **dict(reversed(more) if reverse else more)}

    return change


def both(*changes: Change) -> Change:
    return lambda files, free: [change(files, free) for change in changes]


def put(name: str, **values: Any) -> Change:
    return lambda files, free: files.update({name: values})


def added(**values: int) -> Change:
    """added_tokens.json with ids counted from the first free one."""
    return lambda files, free: files.update({ADDED: {text: free + i for text, i in values.items()}})


def flagged(content: str, **flags: bool) -> Change:
    """added_tokens_decoder that gives a token of tokenizer.json other flags."""

    def change(files: Files, free: int) -> None:
        listed = own(files)
        files[CONFIG]["added_tokens_decoder"] = {
            number: {**each, **flags} if each["content"] == content else each for number, each in listed.items()
        }

    return change


def stored(**flags: bool) -> Change:
    """tokenizer.json's last token with other flags."""
    return lambda files, free: files["tokenizer.json"]["added_tokens"][-1].update(flags)


def named(files: Files, free: int) -> None:
    files[CONFIG]["chat_template"] = [
        {"name": "default", "template": "x"}, {"name": "tools", "template": "y"},
        {"name": "default", "template": TEMPLATE},
    ]  # fmt: skip


SAME: dict[str, Change] = {
    "nothing beside tokenizer.json": config(),
    "a decoder that agrees": decoder(),
    "a decoder with one more": decoder(token(TURN)),
    "a decoder with one more that is not special": decoder(token(NEW, special=False)),
    "a decoder with one more that is normalized": decoder(token(TURN, special=False, normalized=True)),
    "a decoder with one that strips": decoder(token(TURN, lstrip=True, rstrip=True), token(NEW, rstrip=True)),
    "a decoder with one for single words": decoder(token(NEW, single_word=True), token(TURN)),
    "a decoder out of order": decoder(token(TURN), token(NEW), reverse=True),
    "a decoder that changes flags": flagged(START, lstrip=True, rstrip=True),
    "a decoder that makes a token ordinary": flagged(START, special=False),
    "a decoder that lacks tokenizer.json's": lambda files, free: files[CONFIG].update(
        added_tokens_decoder={str(free): token(TURN)}
    ),
    "an empty decoder beside a map": both(config(added_tokens_decoder={}), put(MAP, bos_token=NEW)),
    "added_tokens.json": added(**{TURN: 0}),
    "added_tokens.json, two and special": both(added(**{NEW: 1, TURN: 0}), config(additional_special_tokens=[NEW])),
    "added_tokens.json that agrees": lambda files, free: files.update(
        {ADDED: {each["content"]: int(number) for number, each in own(files).items()}}
    ),
    "added_tokens.json and a decoder that agree": both(decoder(token(TURN)), added(**{TURN: 0})),
    "added_tokens.json of a named token": both(added(**{NEW: 0}), config(pad_token=NEW)),
    "additional_special_tokens": config(additional_special_tokens=[TURN, NEW]),
    "additional_special_tokens with flags": config(additional_special_tokens=[typed(TURN, lstrip=True), NEW]),
    "extra_special_tokens": config(extra_special_tokens=[TURN]),
    "extra_special_tokens by name": config(extra_special_tokens={"turn_token": TURN, "sep_token": NEW}),
    "extra by name and additional": config(
        extra_special_tokens={"turn_token": TURN}, additional_special_tokens=[NEW, TURN]
    ),
    "extra and additional": config(extra_special_tokens=[TURN], additional_special_tokens=[NEW]),
    "a token under a name of its own": config(turn_token=TURN),
    "a token with flags under a name of its own": config(turn_token=typed(TURN, rstrip=True)),
    "an object under a name of its own that is not a token": both(
        config(turn_token=token(TURN)), put(MAP, turn_token=token(NEW))
    ),
    "the same without a map": config(turn_token=token(TURN)),
    "model_specific_special_tokens": config(model_specific_special_tokens={"turn_token": TURN}),
    "a name no template can have": config(extra_special_tokens={"turn-token": TURN, "true": NEW}),
    "a map alone": both(lambda files, free: files[CONFIG].pop("bos_token"), put(MAP, bos_token=START, unk_token=NEW)),
    "a map with flags": put(MAP, bos_token=token(NEW, lstrip=True), sep_token={"content": TURN, "rstrip": True}),
    "a map that overrules": put(MAP, bos_token=END, eos_token=START),
    "a map beside a decoder": both(decoder(token(TURN)), put(MAP, bos_token=END, turn_token=NEW)),
    "a map's additional_special_tokens": put(MAP, additional_special_tokens=[TURN, NEW]),
    "a map's additional beside the config's": both(
        config(additional_special_tokens=[TURN]), put(MAP, additional_special_tokens=[NEW, TURN])
    ),
    "a map's extra_special_tokens": both(config(extra_special_tokens=[TURN]), put(MAP, extra_special_tokens=[NEW])),
    "a map's extra by name": both(
        config(extra_special_tokens=[NEW]), put(MAP, extra_special_tokens={"turn_token": TURN})
    ),
    "a map's own name": both(config(turn_token=START), put(MAP, turn_token=TURN)),
    "a named token that no file has": config(unk_token="<unknown>"),
    "a named token with flags": config(pad_token=typed(NEW, lstrip=True)),
    "a named token of the model's vocabulary": config(sep_token="<base>", pad_token="th"),
    "a named token that is ordinary in tokenizer.json": both(stored(special=False), config(bos_token=END)),
    "the same, listed": both(stored(special=False), decoder(), config(bos_token=END)),
    "null and empty names": config(bos_token=None, unk_token="", extra_special_tokens=None),
    "settings that decide nothing": config(
        add_bos_token=True,
        add_eos_token=True,
        clean_up_tokenization_spaces=True,
        do_lower_case=True,
        legacy=True,
        add_prefix_space=True,
        model_max_length=8,
        use_default_system_prompt=False,
        sp_model_kwargs={},
    ),
    "another code's class": config(tokenizer_class="DreamTokenizer", auto_map={"AutoTokenizer": ["a.B", None]}),
    "templates by name": named,
    "templates as an object": config(chat_template={"default": TEMPLATE, "tools": "x"}),
    "a template's own file": both(config(chat_template="x"), put("chat_template.jinja")),
    "more templates": both(put("chat_template.jinja"), put("additional_chat_templates/tools.jinja")),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "a decoder with a gap": (decoder(token(TURN), first=2), "has '<|Turn|>' as id"),
    "a decoder with another's id": (
        lambda files, free: files[CONFIG].update(added_tokens_decoder={"5": token(TURN)}), "(5 is ",
    ),
    "a decoder with another id": (decoder(token(START)), "tokenizer_config.json has '<|start|>' as id"),
    "added_tokens.json with another id": (added(**{START: 0}), "added_tokens.json has '<|start|>' as id"),
    "added_tokens.json with one id for two": (added(**{TURN: 0, NEW: 0}), "expected an id of its own"),
    "added_tokens.json unlike the decoder": (
        both(decoder(token(TURN), token(NEW)), added(**{NEW: 0})), "added_tokens.json has '<new>' as id",
    ),
    "tokenizer.json with a gap": (
        lambda files, free: files["tokenizer.json"]["added_tokens"][-1].update(id=free + 9), "tokenizer.json has",
    ),
    "a token beyond the model": (
        both(decoder(token("<far>"), token(TURN)), lambda files, free: files.update(vocab=free + 1)), "its model has",
    ),
    "a name that templates have": (config(extra_special_tokens={"messages": TURN}), "special token messages"),
    "no token": (config(bos_token=[1]), "has [1] as bos_token"),
    "no tokens": (config(extra_special_tokens="x"), "has 'x' as extra_special_tokens"),
    "no decoder": (config(added_tokens_decoder=["x"]), "has ['x'] as added_tokens_decoder"),
    "no id": (config(added_tokens_decoder={"x": token(TURN)}), "has 'x' in added_tokens_decoder"),
    "no id in added_tokens.json": (put(ADDED, x="1"), "has '1' as the id of 'x'"),
    "half a surrogate pair in a template": (config(chat_template="a\ud800"), "surrogate pair at character 2"),
    "half a surrogate pair": (config(bos_token="\ud800"), "as bos_token"),
    "a version's tokenizer": (config(fast_tokenizer_files=["tokenizer.4.0.0.json"]), "fast_tokenizer_files"),
    "split_special_tokens": (config(split_special_tokens=True), "split_special_tokens"),
    "a class of transformers' own": (config(tokenizer_class="GPT2Tokenizer"), "tokenizer_class 'GPT2Tokenizer'"),
    "no default template": (config(chat_template=[{"name": "tools", "template": "x"}]), "none of them named default"),
    "more templates and no default file": (put("additional_chat_templates/tools.jinja"), "move it there"),
    "a default among more templates": (
        both(put("chat_template.jinja"), put("additional_chat_templates/default.jinja")), "move it there",
    ),
}  # fmt: skip
QWEN: dict[str, tuple[Change, str | None]] = {
    "a decoder that agrees": (decoder(), None),
    "a decoder with one more": (decoder(token(TURN, lstrip=True)), None),
    "no decoder": (config(additional_special_tokens=[typed(TURN, lstrip=True), NEW]), None),
    "a named token with flags": (both(decoder(token(TURN, lstrip=True)), config(pad_token=TURN)), None),
    "no names": (lambda files, free: [files[CONFIG].pop(name) for name in ("bos_token", "eos_token")], None),
    "null names": (config(unk_token=None, eos_token=None, pad_token=None), None),
    "added_tokens.json and a map": (both(added(**{TURN: 0}), put(MAP, bos_token=NEW)), None),
    "a decoder that lacks one": (config(added_tokens_decoder={}), "in added_tokens_decoder, which tokenizer.json has"),
    "another normalizer": (lambda files, free: files["tokenizer.json"].update(normalizer=None), "than that class"),
    "another split": (config(add_prefix_space=True), "than that class"),
}


def write(folder: Path, engine: Engine, change: Change, **settings: Any) -> int:
    """Writes a directory of text files alone and returns the ids that its model has."""
    engine.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    free = engine.get_vocab_size()
    files: Files = {
        "tokenizer.json": json.loads(engine.to_str()), "config.json": {"model_type": "Dream"},
        CONFIG: {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END,
            "chat_template": TEMPLATE, **settings,
        },
    }  # fmt: skip
    change(files, free)
    vocab: int = files.pop("vocab", free + 20)
    (folder / "additional_chat_templates").mkdir()
    for name, values in files.items():
        (folder / name).write_text(TEMPLATE if name.endswith(".jinja") else json.dumps(values))
    if not any((folder / "additional_chat_templates").iterdir()):
        (folder / "additional_chat_templates").rmdir()
    return vocab


def check_same(folder: Path, vocab: int) -> None:
    """Asserts that template and texts have the ids that transformers gives; what a user writes is plain text."""
    text = read_text(folder, vocab)
    loader = PreTrainedTokenizerFast if "auto_map" in (folder / CONFIG).read_text() else AutoTokenizer  # runs no code
    ours, theirs = Tokenizer(text.tokenizer, text.chat_template), loader.from_pretrained(folder)
    messages = [{"role": "user", "content": "say Hello"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat("say Hello").tolist() == expected
    for each in TEXTS:
        assert ours.encode(each).tolist() == theirs.encode(each, add_special_tokens=False, split_special_tokens=True)
    assert text.ids.items() <= theirs.get_vocab().items()


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("case", SAME)
def test_ids_are_those_of_transformers(case: str, kind: str, tmp_path: Path) -> None:
    check_same(tmp_path, write(tmp_path, ENGINES[kind](), SAME[case]))


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_disagree_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, reason = REFUSED[case]
    vocab = write(tmp_path, bytes_engine(), change)
    with pytest.raises(UserError) as caught:
        read_text(tmp_path, vocab)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", QWEN)
def test_a_class_with_parts_of_its_own_is_as_in_transformers(case: str, tmp_path: Path) -> None:
    change, reason = QWEN[case]
    vocab = write(tmp_path, bytes_engine(), change, tokenizer_class="Qwen2Tokenizer")
    if reason is None:
        check_same(tmp_path, vocab)
        return
    with pytest.raises(UserError, match=reason):
        read_text(tmp_path, vocab)


def test_a_class_of_llamas_is_what_its_tokenizer_is(tmp_path: Path) -> None:
    for kind, engine in ENGINES.items():
        (tmp_path / kind).mkdir()
        vocab = write(tmp_path / kind, engine(), decoder(token(TURN)), tokenizer_class="LlamaTokenizerFast")
        if kind == "bytes":
            check_same(tmp_path / kind, vocab)
            continue
        with pytest.raises(UserError, match="tokenizer_class 'LlamaTokenizerFast'"):
            read_text(tmp_path / kind, vocab)
