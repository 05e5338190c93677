"""Makes requests from prompts that no training has seen, as far as there are enough of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from runtime.contract import Contract
from runtime.decoding.block_layout import count_room_for_answer
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from train import tasks
from train.checkpoint import Checkpoint
from train.data import prompts
from train.tasks.problem import find_split

SEED = 20  # of the held-out problems
TASKS = "math,code"  # their texts suit any tokenizer of English
RECORDED, ANSWER = 40, 96  # prompts of a recorded reference, and the maximum of tokens per answer
COMMON_IDS = 2000  # the first ids of a vocabulary, from which texts are made
TEXT_TOKENS = 24  # tokens per text
DATA_HELP = (
    "file of JSON lines with prompt and answer, instead of a task: first the lines of its split valid, then its "
    "others, until there are enough (default: none)"
)


def take_held_out_texts(names: str, data: Path | None, count: int) -> list[tasks.Problem]:
    """Takes problems of the validation split, evenly from the tasks, or from a file as `take_own_problems` does."""
    return [problem for each in take_held_out_problems(names, data, count) for problem in each]


def take_held_out_problems(names: str, data: Path | None, count: int) -> list[list[tasks.Problem]]:
    """Takes problems as `take_held_out_texts` does, in one list per task."""
    if count < 1:
        raise UserError(f"--prompts is {count}; expected at least 1")
    if data is not None:
        return [take_own_problems(data, count)]
    chosen = tasks.choose_tasks(names)
    shares = [count // len(chosen) + (i < count % len(chosen)) for i in range(len(chosen))]
    return [list(task.problems("valid", n, SEED)) for task, n in zip(chosen, shares, strict=True)]


def take_own_problems(data: Path, count: int) -> list[tasks.Problem]:
    """Takes at most `count` lines of a file: those of its validation split, then its others, in the file's order.

    Two programs of one model have to agree on every prompt, seen in training or not: a file of 20 lines, of which the
    validation split has one or none, is compared on all 20.
    """
    task = tasks.from_file(data)
    lines = list(task.problems("all", sys.maxsize, SEED))
    others = [line for line in lines if find_split(line.prompt) != "valid"]
    held_out = list(task.problems("valid", count, SEED)) if len(others) < len(lines) else []
    return [*held_out, *others][:count]


def take_recorded_problems(names: str, data: Path | None) -> list[tasks.Problem]:
    """Takes a recorded reference's problems. Tasks take turns, so that a first load replays some of each."""
    turns = zip_longest(*take_held_out_problems(names, data, RECORDED))
    return [problem for turn in turns for problem in turn if problem is not None]


def make_held_out_requests(
    encode: prompts.Encode, contract: Contract, texts: Sequence[str], lines: Sequence[int] = ()
) -> list[Request]:
    """Makes one request per prompt that fits (`prompts.find_fitting`), its answer as long as canvas and room allow."""
    encoded = encode(texts)
    kept = prompts.find_fitting(encoded, lines, contract)
    found = [np.array(encoded[place], np.int64) for place in kept]
    return [
        Request(ids, DecodeOptions(min(count_room_for_answer(contract, len(ids)), contract.canvas))) for ids in found
    ]


def make_recorded_requests(
    source: Checkpoint, contract: Contract, task: str | None, data: Path | None
) -> list[Request]:
    """Makes the requests that a bundle's reference is recorded from.

    Prompts come from the task or file, if one is named; else from the sample tasks, if the tokenizer restores their
    texts; else from texts of the tokenizer's most common tokens. The list is empty if the tokenizer knows too little.
    """
    if task or data:
        chosen = take_recorded_problems(task or "", data)
        encode, lines = prompts.make_encoder(source, raw=False), [problem.line for problem in chosen]
        return [shorten(each) for each in make_held_out_requests(encode, contract, [p.prompt for p in chosen], lines)]
    texts, tokenizer = [problem.prompt for problem in take_recorded_problems(TASKS, None)], source.read_tokenizer()
    for made in (texts, make_vocabulary_texts(tokenizer, contract)):
        known = [text for text in made if restores(tokenizer, contract, text)]
        encoded = prompts.make_encoder(source, raw=False)(known) if known else []
        kept = [
            ids for ids in encoded if ids and max(ids) < contract.vocab and count_room_for_answer(contract, len(ids))
        ]
        if kept:
            whole = [(np.array(ids, np.int64), count_room_for_answer(contract, len(ids))) for ids in kept]
            return [Request(ids, DecodeOptions(min(room, contract.canvas, ANSWER))) for ids, room in whole]
    return []


def shorten(request: Request) -> Request:
    """Returns the request for an answer short enough for a reference."""
    wanted = min(request.options.max_new_tokens or ANSWER, ANSWER)
    return replace(request, options=replace(request.options, max_new_tokens=wanted))


def restores(tokenizer: Tokenizer, contract: Contract, text: str) -> bool:
    """Returns whether the tokenizer restores a text, except for spaces, from tokens that the model knows."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    same = tokenizer.decode(ids, skip_special_tokens=False).split() == text.split()
    return bool(ids) and same and max(ids) < contract.vocab and contract.mask_id not in ids


def make_vocabulary_texts(tokenizer: Tokenizer, contract: Contract) -> list[str]:
    """Makes texts of random common tokens, without special ones."""
    rng = np.random.default_rng(SEED)
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [id for id in range(min(COMMON_IDS, contract.vocab)) if id not in special]
    return [tokenizer.decode(rng.choice(ids, TEXT_TOKENS).tolist()) for _ in range(RECORDED)] if ids else []
