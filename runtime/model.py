"""A model and its three levels of answering: one canvas step, a stream of finished blocks, the whole answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from .backend import Backend, Ints, Shareable
from .contract import Contract, GateSpec
from .decoding import loop
from .decoding.batch import Step
from .decoding.block_layout import check_room, check_suffix, room_before_suffix, room_for_answer
from .decoding.loop import Request, Threshold
from .decoding.prefix_cache import Session
from .decoding.request_state import Result
from .decoding.sampling import check_sampling, sampler
from .errors import UserError

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

NEW_TOKENS = 256  # asked for where nothing else is said, cut to the room that the prompt leaves

Prompt = str | Sequence[int] | Ints


@dataclass(frozen=True, slots=True)
class Block:
    """A finished block: its index from 0, its ids (the end token included), the text that it completes.

    A character split over two blocks comes with the later one. `result` stands in the last block alone.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    result: Result | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its text, without the end token, and the fields of `runtime.decoding.request_state.Result`."""

    text: str
    token_ids: tuple[int, ...]
    finish: str
    steps: int
    commits: int
    forwards: int
    blocks: int
    cached: bool
    seconds: float
    prefill_seconds: float
    seed: int | None

    @property
    def tokens_per_forward(self) -> float:
        return len(self.token_ids) / max(1, self.forwards)


@dataclass(frozen=True, slots=True)
class Model:
    """An engine with its tokenizer and gate. It answers one request at a time, since the engine has one cache.

    The options of all three levels: `prompt`, text or token ids; `max_new_tokens`, 256 cut to the room by default;
    `threshold`, a value or a function read at every step, the gate's own by default; `fused`, whether a block's commit
    shares a forward with the next canvas; `raw`, whether text goes without the bundle's chat template; `suffix`, text
    or ids behind exactly `max_new_tokens` positions, by default as many as the block has room for: the answer is what
    stands before it, to an end token; as text it is encoded alone and without a chat template; `temperature`, 0 for
    the best tokens, above it to 5 for drawn ones, of a bundle exported with top tokens; `seed`, an int64 with which
    the same draws are made again, itself drawn by default and then told in the result. Each raises UserError before
    any work where the request does not fit, and NumericalError for scores that are not numbers.
    """

    backend: Backend
    tokenizer: Tokenizer
    gate: GateSpec
    engine: str
    precision: str
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _process: int = field(default_factory=os.getpid, repr=False, compare=False)
    _session: Session | None = field(default=None, repr=False, compare=False)

    @property
    def contract(self) -> Contract:
        return self.backend.contract

    def steps(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        threshold: Threshold | None = None,
        fused: bool = True,
        raw: bool = False,
        suffix: Prompt = "",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Generator[Step, None, None]:
        """What each forward does to the canvas; the last step has the result. To leave early, close it."""
        request = self.request(
            prompt, max_new_tokens=max_new_tokens, raw=raw, suffix=suffix, temperature=temperature, seed=seed
        )
        return self._steps(request, threshold, fused)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        threshold: Threshold | None = None,
        fused: bool = True,
        raw: bool = False,
        suffix: Prompt = "",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Block]:
        """Blocks as they become final; their texts together are the answer's."""
        request = self.request(
            prompt, max_new_tokens=max_new_tokens, raw=raw, suffix=suffix, temperature=temperature, seed=seed
        )
        return blocks(self._steps(request, threshold, fused), self.tokenizer)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        threshold: Threshold | None = None,
        fused: bool = True,
        raw: bool = False,
        suffix: Prompt = "",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """The whole answer."""
        request = self.request(
            prompt, max_new_tokens=max_new_tokens, raw=raw, suffix=suffix, temperature=temperature, seed=seed
        )
        return collect_answer(blocks(self._steps(request, threshold, fused), self.tokenizer))

    def share(self) -> Model:
        """Another model over the same weights, for another thread. Raises UserError where the engine cannot."""
        self._check_process()
        if not isinstance(self.backend, Shareable):
            raise UserError(f"engine {self.engine} answers one request at a time; use one thread, or load it again")
        return Model(self.backend.share(), self.tokenizer, self.gate, self.engine, self.precision)

    def session(self) -> Model:
        """Another model over the same weights that keeps a prefix in its cache from one answer to the next.

        Where prompts begin alike, as a conversation's do, the whole blocks that they share are computed once; answers
        are the same in fp32. Raises UserError where the engine cannot be shared or no prefix can be kept: under the
        alignment `prompt` every token sees the whole prompt, and a `full` model has no cache.
        """
        own = self.share()
        return replace(own, _session=Session(own.backend, own.gate))

    def request(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        raw: bool = False,
        suffix: Prompt = "",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Request:
        """The prompt as ids int64 [length] and the tokens wanted. Raises UserError where they make no request.

        A seed is drawn where one is needed and none was given.
        """
        ids = self._encode(prompt, raw) if isinstance(prompt, str) else token_ids(prompt)
        behind = self.tokenizer.encode(suffix) if isinstance(suffix, str) else token_ids(suffix)
        if max_new_tokens is None:
            room = room_for_answer(self.contract, len(ids))
            room = min(room, room_before_suffix(self.contract, len(ids), len(behind))) if len(behind) else room
            max_new_tokens = max(1, min(NEW_TOKENS, room))
        check_room(self.contract, len(ids), max_new_tokens)
        check_suffix(self.contract, len(ids), max_new_tokens, behind)
        check_sampling(self.contract, temperature, seed)
        drawing = sampler(temperature, seed)
        seed = None if drawing is None else drawing.seed
        return Request(ids, max_new_tokens, suffix=behind, temperature=temperature, seed=seed)

    def _encode(self, text: str, raw: bool) -> Ints:
        if not text:  # a chat template would make tokens of nothing
            raise UserError("the prompt is empty; give at least one character")
        return self.tokenizer.encode(text) if raw else self.tokenizer.encode_chat(text)

    def _check_process(self) -> None:
        """Raises UserError in a child of fork(), which has the engine's memory and not its threads: it would hang."""
        if os.getpid() != self._process:
            raise UserError(
                "this model was loaded before the process forked; load it in the child, or start that by spawn"
            )

    def _steps(self, request: Request, threshold: Threshold | None, fused: bool) -> Generator[Step, None, None]:
        self._check_process()
        if not self._busy.acquire(blocking=False):
            raise UserError("this model is in the middle of another answer; end or close that one, or load a second")
        try:
            if self._session is None:
                made = loop.steps(self.backend, [request], threshold=threshold, gate=self.gate, fused=fused)
            else:
                made = self._session.steps(request, threshold=threshold, fused=fused)
            for done in made:
                yield from done
        finally:
            self._busy.release()


def token_ids(prompt: Sequence[int] | Ints) -> Ints:
    """Ids as int64 [length]. Raises UserError where they are not a row of whole numbers."""
    ids = np.asarray(prompt if len(prompt) else np.zeros(0, np.int64))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"the prompt is an array {list(ids.shape)} of {ids.dtype}; expected text or a row of token ids")
    return ids.astype(np.int64)


def blocks(steps: Iterable[Step], tokenizer: Tokenizer) -> Iterator[Block]:
    """The finished blocks of one request's steps."""
    text, out = tokenizer.stream(), 0
    for step in steps:
        if step.result is not None:
            ids = step.result.token_ids[out:]
            last = text.push(ids[:-1] if step.result.finish == "eos" else ids) + text.finish()
            yield Block(step.block, ids, last, step.result)
        elif not step.open.any():
            ids = tuple(step.tokens[step.given :].tolist())
            out += len(ids)
            yield Block(step.block, ids, text.push(ids), None)


def collect_answer(stream: Iterable[Block]) -> Answer:
    """The answer that a stream of blocks makes, taken to its end."""
    pieces, result = [], None
    for block in stream:
        pieces.append(block.text)
        result = block.result
    if result is None:
        raise ValueError("the stream ended before its last block")
    return Answer(text="".join(pieces), **asdict(result))


def worker_models(model: Model, workers: int | None) -> list[Model]:
    """Returns one model per worker over the same weights; by default two, or one if the engine cannot be shared."""
    count = workers or (2 if isinstance(model.backend, Shareable) else 1)
    return [model, *(model.share() for _ in range(count - 1))]
