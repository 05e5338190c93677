"""Prompts of every length and any text: answered, or refused in one line; and every character through the tokenizer."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reliability.section import Section
from speaking import BYTES, SPECIAL, make_byte_tokenizer
from tqdm import tqdm

from runtime import Model, load
from runtime.errors import UserError
from runtime.model import Prompt
from runtime.text.tokenizer import BROKEN, Tokenizer

TITLE = "Prompts"
BUNDLE = Path(__file__).parents[2] / "samples" / "student.bundle"
MILLION = 1_000_000
PIECES = (1, 2, 3, 5)  # ids that come at once
ROW = 128  # characters; every Unicode block begins at a multiple of 16, most at one of 128
TEXTS = (
    " ", "\n", "\0", "\ufeff", "\u202eabc", "שלום עולם", "مرحبا بالعالم", "हिन्दी", "ภาษาไทย", "日本語のテキスト",
    "한국어", "😀" * 9, "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪", "e\u0301\u0323\u0302" * 5, "Z\u0351\u036b\u0343\u036a\u0302" * 9,
    "\u200b\u200c\u200d", "\x1b[31mred\x07", "\U0010ffff\ufffe", "%s %n {0} ${x} `id` $(id) ' OR 1=1 --",
    "<|im_start|>system\n[INST] <s> </s> [MASK]", "\\u0000 \\ud800", BROKEN,
)  # fmt: skip
LONG = ("a", " ", "\n", "7", "ab ", "é", "日", "😀", "e\u0301", "\u202e", SPECIAL[2], "The quick brown fox. ")
Row = tuple[str, int, str]


def run(scale: float) -> Section:
    """All of it at 1, a part below. Raises AssertionError for a text that comes back otherwise, and what is no refusal
    in one line raises."""
    model, rng = load(BUNDLE, threads=1), random.Random(4)
    single = Tokenizer(make_byte_tokenizer().to_str())
    count = math.ceil(500 * scale)
    rows = [
        lengths(model, scale, rng),
        asked(model, "texts of many scripts, controls, and other models' markup", TEXTS),
        asked(model, "half a surrogate pair somewhere in a text", halves(rng, count)),
        asked(model, "a million characters", (text * (MILLION // len(text)) for text in some(LONG, scale))),
        specials(model, single, rng, count),
        *(characters(f"every printable character, {name}", t, scale) for name, t in
          (("the sample's tokenizer", model.tokenizer), ("one token per byte", single))),
    ]  # fmt: skip
    return Section(TITLE, tuple(rows))


def answered(model: Model, prompt: Prompt, tokens: int | None = None) -> str:
    """What comes of a prompt: an answer, streamed as it is given at once, or a refusal in one line."""
    try:
        whole = model.generate(prompt, max_new_tokens=tokens)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        return "refused in one line"
    blocks = list(model.stream(prompt, max_new_tokens=tokens))
    assert "".join(block.text for block in blocks) == whole.text and blocks[-1].result is not None
    assert sum((block.token_ids for block in blocks), ()) == whole.result.token_ids
    return "answered"


def asked(model: Model, what: str, prompts: Iterable[Prompt]) -> Row:
    found = Counter(answered(model, prompt, 16) for prompt in tqdm(prompts, desc=what, leave=False))
    return what, found.total(), told(found)


def lengths(model: Model, scale: float, rng: random.Random) -> Row:
    """Prompts of no token to five beyond the capacity, each for one token and for exactly the room that it leaves."""
    capacity, block = model.contract.capacity, model.contract.block
    found: Counter[str] = Counter()
    for length in some(range(capacity + 6), scale):
        ids = [rng.randrange(model.contract.vocab) for _ in range(length)]
        room = (capacity - length) // block * block
        for tokens in {1, room, room + 1}:
            outcome = answered(model, ids, tokens)
            assert (outcome == "answered") == (length > 0 and 0 < tokens <= room), (length, tokens, outcome)
            found[outcome] += 1
    return f"prompts of 0 to {capacity + 5} tokens for 1, all the room and 1 more", found.total(), told(found)


def halves(rng: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        text = [rng.choice("aé日😀") for _ in range(rng.randrange(9))]
        yield "".join((*text, chr(rng.randrange(0xD800, 0xE000)), *text[::-1]))


def specials(model: Model, single: Tokenizer, rng: random.Random, count: int) -> Row:
    """Special tokens' texts, cut and nested, between others: never special, and back as they were."""
    special = {model.contract.mask_id, model.contract.pad_id, *model.contract.eos_ids}
    for _ in range(count):
        parts = [rng.choice((*SPECIAL, *(text[:i] for text in SPECIAL for i in (2, 5)), "a", " ")) for _ in range(9)]
        text = "".join(parts)
        for tokenizer, none in ((model.tokenizer, special), (single, set(range(BYTES)))):
            ids = tokenizer.encode(text).tolist()
            assert not none & set(ids) and tokenizer.decode(ids) == text, text
    return "texts of special tokens, whole, cut and nested", count, "plain text, back as it was"


def characters(what: str, tokenizer: Tokenizer, scale: float) -> Row:
    """Every printable character among its neighbours: back as it was, and in pieces never a part of it."""
    count = 0
    for first in tqdm(some(range(0, 0x110000, ROW), scale), desc=what, leave=False):
        text = "".join(c for c in map(chr, range(first, first + ROW)) if c.isprintable())
        count += len(text)
        ids = tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text, f"U+{first:04X}"
        for size in PIECES:
            check_pieces(tokenizer, ids, size, text)
    return what, count, f"back as it was, also in pieces of {', '.join(map(str, PIECES))} ids, none broken"


def check_pieces(tokenizer: Tokenizer, ids: Sequence[int], size: int, text: str) -> None:
    """Streams the ids, so many at once. Raises AssertionError for a piece with a broken character, or another text."""
    stream = tokenizer.stream()
    pieces = [stream.push(ids[first : first + size]) for first in range(0, len(ids), size)]
    assert BROKEN in text or not any(BROKEN in piece for piece in pieces), text
    assert "".join(pieces) + stream.finish() == text, text


def some(values: Sequence, scale: float) -> list:
    """A part of them, evenly spread, the first and the last among them."""
    count = max(2, math.ceil(len(values) * scale))
    return [values[i * (len(values) - 1) // (count - 1)] for i in range(count)]


def told(found: Counter[str]) -> str:
    return ", ".join(f"{outcome} {times}" for outcome, times in sorted(found.items()))
