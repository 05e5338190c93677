"""Makes batches of tokenized problems. A batch depends only on seed and step, so a resumed run sees the same ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.errors import UserError
from train.tasks import Problem, Task

from . import prompts

CHUNK = 16  # batches sampled together and sorted by length, so that little of a batch is padding
SURVEY = 2000  # training problems whose lengths are measured
SHORT, FINE, STRIDE = 64, 8, 32  # widths are multiples of FINE up to SHORT, of STRIDE above: few shapes, little padding


@dataclass(frozen=True, slots=True)
class Example:
    """Holds the token ids of a prompt and of its answer, the end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Holds right-padded sequences. ids int64 [batch, width]; start, length int64 [batch]: bounds of the answers."""

    ids: Tensor
    start: Tensor
    length: Tensor


def encode(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], end_id: int, encode_prompts: prompts.Encode | None = None
) -> list[Example]:
    """Encodes (prompt, answer) texts as examples.

    Prompt and answer are encoded separately, as at inference; prompts by `encode_prompts`, as plain text if it is None.
    """
    plain = prompts.make_plain_encoder(tokenizer)
    prompt_ids = (encode_prompts or plain)([prompt for prompt, _ in pairs])
    answers = plain([answer for _, answer in pairs])
    return [Example(tuple(ids), (*answer, end_id)) for ids, answer in zip(prompt_ids, answers, strict=True)]


def count_tokens(examples: Sequence[Example]) -> int:
    """Counts the tokens of prompts and answers."""
    return sum(len(example.prompt) + len(example.answer) for example in examples)


def choose_width(longest: int) -> int:
    """Returns the width of a batch whose longest row has this many tokens."""
    stride = FINE if longest <= SHORT else STRIDE
    return -(-longest // stride) * stride


def pad(examples: Sequence[Example], pad_id: int) -> PaddedBatch:
    """Pads examples to one batch, as wide as `choose_width` returns."""
    longest = max(len(example.prompt) + len(example.answer) for example in examples)
    ids = torch.full((len(examples), choose_width(longest)), pad_id)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.prompt + example.answer)
        ids[row, : len(tokens)] = tokens
    start = torch.tensor([len(example.prompt) for example in examples])
    length = torch.tensor([len(example.prompt) + len(example.answer) for example in examples])
    return PaddedBatch(ids, start, length)


def survey(
    tasks: Sequence[Task], tokenizer: Tokenizer, end_id: int, encode_prompts: prompts.Encode | None = None
) -> list[Example]:
    """Returns the training examples whose lengths are measured: the problems of `sample_different`, encoded."""
    return encode(tokenizer, [(p.prompt, p.answer) for p in sample_different(tasks)], end_id, encode_prompts)


def sample_different(tasks: Sequence[Task]) -> list[Problem]:
    """Returns up to SURVEY sampled training problems, without repetitions; all those of a file that has fewer."""
    sampled = (problem for task in tasks for problem in task.problems("train", SURVEY // len(tasks), 0))
    return list({(problem.prompt, problem.answer): problem for problem in sampled}.values())


def choose_canvas(examples: Sequence[Example], block: int) -> int:
    """Returns a canvas's length: the 99th percentile of answer lengths, end token included, in whole blocks."""
    lengths = [len(example.answer) for example in examples]
    return -(-int(np.quantile(lengths, 0.99, method="inverted_cdf")) // block) * block


class Stream:
    """Samples training examples of several tasks in equal shares; a step's examples are the same on every call."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        end_id: int,
        batch: int,
        seed: int,
        longest: int,
        longest_answer: int,
        encode_prompts: prompts.Encode | None = None,
    ) -> None:
        """Creates the stream.

        Examples are left out if their answer has more than `longest_answer` tokens, or prompt and answer together more
        than `longest`. encode_prompts: encodes the prompts; None: they are encoded as plain text.
        """
        self.tasks, self.tokenizer, self.end_id, self.encode_prompts = tasks, tokenizer, end_id, encode_prompts
        self.batch, self.seed, self.longest, self.longest_answer = batch, seed, longest, longest_answer
        self._chunk: tuple[int, list[list[Example]]] | None = None

    def select_examples(self, step: int) -> list[Example]:
        """Returns the `batch` examples of a training step, which have similar lengths."""
        chunk, place = divmod(step, CHUNK)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = (chunk, self._sample_chunk(chunk))
        return self._chunk[1][place]

    def _sample_chunk(self, chunk: int) -> list[list[Example]]:
        """Returns CHUNK batches, each of examples of similar lengths."""
        seed, share = self.seed * 1_000_003 + chunk, CHUNK * self.batch // len(self.tasks) + 1
        sampled: list[Example] = []
        for task in self.tasks:
            pairs = [(problem.prompt, problem.answer) for problem in task.problems("train", share, seed)]
            sampled += encode(self.tokenizer, pairs, self.end_id, self.encode_prompts)
        fitting = [example for example in sampled if self._fits(example)]
        if not fitting:
            raise UserError(
                f"no training answer has at most {self.longest_answer} tokens, and {self.longest} with its prompt; "
                "raise --canvas or --context"
            )
        rng = random.Random(seed)
        rng.shuffle(fitting)
        wanted = CHUNK * self.batch
        while len(fitting) < wanted:  # examples that were too long are replaced by repeating others
            fitting += fitting[: wanted - len(fitting)]
        ordered = sorted(islice(fitting, wanted), key=lambda e: len(e.prompt) + len(e.answer))
        batches = [ordered[i : i + self.batch] for i in range(0, wanted, self.batch)]
        rng.shuffle(batches)
        return batches

    def _fits(self, example: Example) -> bool:
        whole = len(example.prompt) + len(example.answer)
        return bool(example.prompt) and len(example.answer) <= self.longest_answer and whole <= self.longest

    def report_left_out(self) -> None:
        """Prints to stderr how many training examples are left out: those too long, or with an empty prompt."""
        problems = sample_different(self.tasks)
        found = encode(self.tokenizer, [(p.prompt, p.answer) for p in problems], self.end_id, self.encode_prompts)
        left_out = [problem for problem, example in zip(problems, found, strict=True) if not self._fits(example)]
        if 0 < len(left_out) < len(found):  # if all are, the first batch raises UserError
            lines = [problem.line for problem in left_out if problem.line]
            print(
                f"{len(left_out)} of {len(found)} training examples ({100 * len(left_out) / len(found):.1f} %) are "
                f"left out: an answer has more than {self.longest_answer} tokens, or more than {self.longest} with its "
                f"prompt, or the prompt has none{': ' * bool(lines)}{prompts.name_lines(lines) if lines else ''}",
                file=sys.stderr,
            )
