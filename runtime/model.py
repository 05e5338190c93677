"""Defines `Model`, which answers at three levels: canvas steps, a stream of finished blocks, the whole answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .backend import Backend, Ints, Shareable
from .contract import Contract, GateSpec
from .decisions.decide import DecisionOptions, decide
from .decisions.form import Decision, Form, Probability
from .decoding import loop
from .decoding.batch import Step
from .decoding.options import (
    DEFAULTS,
    DecodeOptions,
    OptionKeywords,
    Prompt,
    Request,
    Threshold,
    complete_options,
    convert_token_ids,
)
from .decoding.prefix_cache import Session
from .decoding.request_state import Result
from .decoding.running_batch import RunningBatch
from .errors import UserError

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

    from .decisions.document import TypedDecision
    from .decisions.typed import DecisionKeywords
    from .text.tokenizer import Tokenizer

T = TypeVar("T")
POLL = 0.02  # seconds between checks whether a request that waits for a model is still wanted


@dataclass(frozen=True, slots=True)
class Block:
    """Holds a finished block: its index from 0, its ids (the end token included), the text that it completes.

    A character split over two blocks is in the later one's text. Only the last block has a `result`.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    result: Result | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds a whole answer: its text, without the end token, and the result, with token ids, counts and times."""

    text: str
    result: Result


@dataclass(frozen=True, slots=True)
class Model:
    """Generates with an engine, a tokenizer and a gate; one request at a time, since the engine has one KV cache.

    `steps`, `stream` and `generate` take a prompt, as text or token ids, and the options of
    `runtime.decoding.options.DecodeOptions`, as keywords (`max_new_tokens=64, threshold=0.8`), as one object, or both;
    keywords take precedence. Each raises UserError before any work if the request does not fit, and NumericalError for
    scores that are not numbers. proved: whether the engine was proved to compute on this machine what PyTorch computed
    at its export; None if it has no recorded reference. decision_temperature: divides the scores of a decision's values
    if the request gives no temperature; `train.calibrate --decisions` fits it.
    """

    backend: Backend
    tokenizer: Tokenizer
    gate: GateSpec
    engine: str
    precision: str
    proved: bool | None = None
    decision_temperature: float = 1.0
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _process: int = field(default_factory=os.getpid, repr=False, compare=False)
    _session: Session | None = field(default=None, repr=False, compare=False)

    @property
    def contract(self) -> Contract:
        return self.backend.contract

    def steps(
        self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]
    ) -> Generator[Step, None, None]:
        """Yields what each forward pass does to the canvas; the last step has the result. Close it to stop early."""
        return self._decode_steps(self.request(prompt, options, **keywords))

    def stream(
        self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]
    ) -> Iterator[Block]:
        """Yields blocks as they are finished; their texts together are the answer's text."""
        return blocks(self.steps(prompt, options, **keywords), self.tokenizer)

    def generate(self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]) -> Answer:
        """Returns the whole answer."""
        return collect_answer(self.stream(prompt, options, **keywords))

    def decide_form(
        self,
        prompt: Prompt,
        form: Form,
        *,
        probability: Probability = "parallel",
        max_forwards: int | None = None,
        temperature: float | None = None,
        threshold: Threshold | None = None,
        raw: bool = False,
        wanted: Callable[[], bool] | None = None,
    ) -> Decision:
        """Fills a form: its words stay, and each field gets the most probable of its values (`decisions.decide`).

        Args:
            probability: What the fields' probabilities mean, `parallel` or `ordered`.
            max_forwards: Maximum of forward passes; a decision that needs more is returned unfinished, as `partial`.
            temperature: Divides the scores of a field's values before the softmax, which changes no choice. None for
                the bundle's own.
            threshold: The gate's threshold for free texts.
            raw: Whether to leave the bundle's chat template out of a text prompt.
            wanted: Called before each forward pass; once it returns false, the decision ends, as `partial`.

        Raises:
            UserError: Before any work, if form and prompt do not fit the model, or the engine takes no candidates.
            NumericalError: For scores that are not numbers.
        """
        ids = self._encode(prompt, raw) if isinstance(prompt, str) else convert_token_ids(prompt)
        heat = self.decision_temperature if temperature is None else temperature
        options = DecisionOptions(probability, max_forwards, heat, threshold, wanted)
        self._check_process()
        self._acquire()
        try:
            if self._session is not None:
                self._session.forget()
            return decide(self.backend, self.tokenizer, self.gate, ids, form, options)
        finally:
            self._busy.release()

    @overload
    def decide(self, prompt: Prompt, schema: type[T], **keywords: Unpack[DecisionKeywords]) -> TypedDecision[T]: ...

    @overload
    def decide(self, prompt: Prompt, schema: object, **keywords: Unpack[DecisionKeywords]) -> TypedDecision[Any]: ...

    def decide(self, prompt: Prompt, schema: Any, **keywords: Unpack[DecisionKeywords]) -> TypedDecision[Any]:
        """Decides a value of a type: chooses each field among its possible values, so that nothing else can come.

        schema: a pydantic model, `Literal`, an `Enum`, `bool`, `Annotated[int, ...]` with bounds, a list of strings, or
        a JSON schema as a dict (docs/decisions.md has the subset); keywords: those of `decide_form`.
        Raises what `decide_form` raises, and UserError, naming the construct, for a schema beyond the subset.
        """
        from .decisions.typed import decide_type

        return decide_type(self, prompt, schema, **keywords)

    def share(self) -> Model:
        """Returns a model that shares the weights, for another thread. Raises UserError if the engine cannot share."""
        self._check_process()
        if not isinstance(self.backend, Shareable):
            raise UserError(f"engine {self.engine} answers one request at a time; use one thread, or load it again")
        return Model(
            self.backend.share(), self.tokenizer, self.gate, self.engine, self.precision, self.proved,
            self.decision_temperature,
        )  # fmt: skip

    def session(self) -> Model:
        """Returns another model over the same weights, with prefix caching from one answer to the next.

        If prompts begin alike, as a conversation's do, the whole blocks that they share are computed once; in fp32 the
        answers are the same. Raises UserError if the engine's weights cannot be shared, or if no prefix can be kept:
        with the alignment `prompt` every prompt token of a block-causal model sees the whole prompt, and a `full`
        model has no KV cache.
        """
        own = self.share()
        return replace(own, _session=Session(own.backend, own.gate))

    def batch(self, slots: int) -> RunningBatch:
        """Returns a running batch of at most `slots` requests; from then on only the batch can use this model.

        Raises UserError if the engine takes fewer sequences at once, or if the model is in the middle of an answer.
        """
        self._check_process()
        most = self.contract.batch
        if not 1 <= slots <= most:
            counts = f"1 to {most}, the sequences" if most > 1 else "1, the one sequence"
            raise UserError(f"slots is {slots}; expected {counts} that engine {self.engine} takes")
        self._acquire()
        return RunningBatch(self.backend, self.gate, slots)

    def request(self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]) -> Request:
        """Returns the prompt's ids, int64 [length], with completed options. Raises UserError if they do not fit.

        A seed is chosen if one is needed and none was given.
        """
        options = replace(options, **keywords)
        ids = self._encode(prompt, options.raw) if isinstance(prompt, str) else convert_token_ids(prompt)
        if isinstance(options.suffix, str):
            options = replace(options, suffix=self.tokenizer.encode(options.suffix))
        return Request(ids, complete_options(self.contract, ids, options))

    def _encode(self, text: str, raw: bool) -> Ints:
        if not text:  # a chat template would make tokens even of an empty text
            raise UserError("the prompt is empty; give at least one character")
        return self.tokenizer.encode(text) if raw else self.tokenizer.encode_chat(text)

    def _check_process(self) -> None:
        """Raises UserError in a child of fork(): it has the engine's memory but not its threads, and would hang."""
        if os.getpid() != self._process:
            raise UserError(
                "this model was loaded before the process forked; load it in the child process, or start that one by "
                "spawn"
            )

    def _acquire(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise UserError("this model is generating another answer; end or close that one, or load a second model")

    def _decode_steps(self, request: Request) -> Generator[Step, None, None]:
        self._check_process()
        self._acquire()
        try:
            if self._session is None:
                made = loop.decode_steps(self.backend, [request], gate=self.gate)
            else:
                made = self._session.steps(request)
            for done in made:
                yield from done
        finally:
            self._busy.release()


def yield_while_wanted(steps: Iterable[Step], wanted: Callable[[], bool]) -> Iterator[Step]:
    """Yields steps until `wanted` returns false after one of them; it is not called after a request's last step."""
    for step in steps:
        yield step
        if step.result is None and not wanted():
            return


class BlockReader:
    """Makes finished blocks from the steps of one request, as they come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text, self._out = tokenizer.stream(), 0

    def read(self, step: Step) -> Block | None:
        """Returns the block that this step finished, None if it is still in progress."""
        text = self._text
        if step.result is not None:
            ids = step.result.token_ids[self._out :]
            last = text.push(ids[:-1] if step.result.finish == "eos" else ids) + text.finish()
            return Block(step.block, ids, last, step.result)
        if step.open.any():
            return None
        ids = tuple(step.tokens[step.given :].tolist())
        self._out += len(ids)
        return Block(step.block, ids, text.push(ids), None)


def blocks(steps: Iterable[Step], tokenizer: Tokenizer) -> Iterator[Block]:
    """Yields the finished blocks of one request's steps."""
    reader = BlockReader(tokenizer)
    for step in steps:
        if (block := reader.read(step)) is not None:
            yield block


def collect_answer(stream: Iterable[Block]) -> Answer:
    """Reads a stream of blocks to its end and returns the answer."""
    pieces, result = [], None
    for block in stream:
        pieces.append(block.text)
        result = block.result
    if result is None:
        raise ValueError("the stream ended before its last block")
    return Answer("".join(pieces), result)


class ModelPool:
    """Holds models over one copy of the weights, each lent to one request at a time: `take` one, `give` it back.

    workers: the number of models; by default two, or one if the engine's weights cannot be shared, for which more than
    one raises UserError.
    """

    def __init__(self, model: Model, workers: int | None = None) -> None:
        count = workers or (2 if isinstance(model.backend, Shareable) else 1)
        self.models = (model, *(model.share() for _ in range(count - 1)))
        self._idle, self._returned = list(self.models), threading.Condition()

    def take(self) -> Model:
        """Returns a free model, after a wait if need be."""
        with self._returned:
            self._returned.wait_for(lambda: self._idle)
            return self._idle.pop()

    def take_while(self, wanted: Callable[[], bool]) -> Model | None:
        """Waits for a free model and returns it; returns None once `wanted`, called every POLL seconds, is false."""
        with self._returned:
            while wanted():
                if self._returned.wait_for(lambda: self._idle, POLL):
                    return self._idle.pop()
        return None

    def give(self, model: Model) -> None:
        """Takes back a model that was lent."""
        with self._returned:
            self._idle.append(model)
            self._returned.notify()
