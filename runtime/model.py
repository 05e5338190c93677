"""A model and its three levels of answering: one canvas step, a stream of finished blocks, the whole answer."""

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
from .decoding.options import DEFAULTS, DecodeOptions, OptionKeywords, Prompt, Request, Threshold, settle, token_ids
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
POLL = 0.02  # seconds between two looks at whether a request that waits for a model is still wanted


@dataclass(frozen=True, slots=True)
class Block:
    """Holds a finished block: its index from 0, its ids (the end token included), the text that it completes.

    A character split over two blocks comes with the later one. Only the last block has a `result`.
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
    """Generates with an engine, tokenizer and gate. One request at a time, since the engine has one KV cache.

    All three levels take a prompt, text or token ids, and the options of `runtime.decoding.options.DecodeOptions`, as
    keywords (`max_new_tokens=64, threshold=0.8`), as one object, or both, of which the keywords count. Each raises
    UserError before any work if the request does not fit, and NumericalError for scores that are not numbers.
    proved: whether the engine computed on this machine what PyTorch did when it was exported; None if its bundle has
    nothing to prove it by, or it is of no bundle. decision_temperature: divides the scores of a decision's values where
    a request names none, as `train.calibrate --decisions` fitted it.
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
        """Yields what each forward pass does to the canvas; the last step has the result. To leave early, close it."""
        return self._steps(self.request(prompt, options, **keywords))

    def stream(
        self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]
    ) -> Iterator[Block]:
        """Yields blocks as they are finished; their texts together are the answer's."""
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
        """Fills a form: its words are pinned, and each field gets the likeliest of its values (`decisions.decide`).

        Args:
            probability: What the fields' probabilities mean, `parallel` or `ordered`.
            max_forwards: Most forward passes; a decision that takes more is returned as it is then, marked `partial`.
            temperature: Divides the scores of a field's values before the softmax; no choice changes with it. None for
                the bundle's own.
            threshold: Of the gate, for free texts.
            raw: Whether a text prompt goes without the bundle's chat template.
            wanted: Called before each forward pass; the decision ends, partial, once it returns false.

        Raises:
            UserError: Before any work, if form and prompt do not fit the model, or its bundle has no candidates.
            NumericalError: For scores that are not numbers.
        """
        ids = self._encode(prompt, raw) if isinstance(prompt, str) else token_ids(prompt)
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
        """Decides a value of a type: its fields are chosen among their values, nothing else can come of it.

        schema: a pydantic model, `Literal`, an `Enum`, `bool`, `Annotated[int, ...]` with bounds, a list of strings, or
        a JSON schema as a dict (docs/decisions.md has the subset); keywords: those of `decide_form`.
        Raises UserError for a schema beyond the subset, naming the construct, and what `decide_form` raises.
        """
        from .decisions.typed import decide_type

        return decide_type(self, prompt, schema, **keywords)

    def share(self) -> Model:
        """Returns another model over the same weights, for another thread. Raises UserError if the engine cannot."""
        self._check_process()
        if not isinstance(self.backend, Shareable):
            raise UserError(f"engine {self.engine} answers one request at a time; use one thread, or load it again")
        return Model(
            self.backend.share(), self.tokenizer, self.gate, self.engine, self.precision, self.proved,
            self.decision_temperature,
        )  # fmt: skip

    def session(self) -> Model:
        """Returns another model over the same weights, with prefix caching from one answer to the next.

        If prompts begin alike, as a conversation's do, the whole blocks that they share are computed once; answers
        are the same in fp32. Raises UserError if the engine cannot be shared or no prefix can be kept: under the
        alignment `prompt` every token sees the whole prompt, and a `full` model has no KV cache.
        """
        own = self.share()
        return replace(own, _session=Session(own.backend, own.gate))

    def batch(self, slots: int) -> RunningBatch:
        """Returns a running batch of at most `slots` requests, which has this model for itself from now on.

        Raises UserError if the engine takes fewer sequences at once, or the model is in the middle of an answer.
        """
        self._check_process()
        most = self.contract.batch
        if not 1 <= slots <= most:
            counts = f"1 to {most}, the sequences" if most > 1 else "1, the one sequence"
            raise UserError(f"slots is {slots}; expected {counts} that engine {self.engine} takes")
        self._acquire()
        return RunningBatch(self.backend, self.gate, slots)

    def request(self, prompt: Prompt, options: DecodeOptions = DEFAULTS, **keywords: Unpack[OptionKeywords]) -> Request:
        """Returns the prompt as ids int64 [length], and its complete options. Raises UserError if they make no request.

        A seed is chosen if one is needed and none was given.
        """
        options = replace(options, **keywords)
        ids = self._encode(prompt, options.raw) if isinstance(prompt, str) else token_ids(prompt)
        if isinstance(options.suffix, str):
            options = replace(options, suffix=self.tokenizer.encode(options.suffix))
        return Request(ids, settle(self.contract, ids, options))

    def _encode(self, text: str, raw: bool) -> Ints:
        if not text:  # a chat template would make tokens of nothing
            raise UserError("the prompt is empty; give at least one character")
        return self.tokenizer.encode(text) if raw else self.tokenizer.encode_chat(text)

    def _check_process(self) -> None:
        """Raises UserError in a child of fork(), which has the engine's memory and not its threads: it would hang."""
        if os.getpid() != self._process:
            raise UserError(
                "this model was loaded before the process forked; load it in the child process, or start that one by "
                "spawn"
            )

    def _acquire(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise UserError("this model is generating another answer; end or close that one, or load a second model")

    def _steps(self, request: Request) -> Generator[Step, None, None]:
        self._check_process()
        self._acquire()
        try:
            if self._session is None:
                made = loop.steps(self.backend, [request], gate=self.gate)
            else:
                made = self._session.steps(request)
            for done in made:
                yield from done
        finally:
            self._busy.release()


def while_wanted(steps: Iterable[Step], wanted: Callable[[], bool]) -> Iterator[Step]:
    """Yields the steps up to the first after which nobody wants more; a request's last step is passed on."""
    for step in steps:
        yield step
        if step.result is None and not wanted():
            return


class BlockReader:
    """Reads finished blocks off the steps of one request, as they come."""

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
    """Returns the answer that a stream of blocks makes, taken to its end."""
    pieces, result = [], None
    for block in stream:
        pieces.append(block.text)
        result = block.result
    if result is None:
        raise ValueError("the stream ended before its last block")
    return Answer("".join(pieces), result)


class ModelPool:
    """Holds models over one copy of the weights, each lent to one request at a time: `take` one, `give` it back.

    workers: how many there are; by default two, or one if the engine cannot be shared. Raises UserError for more of an
    engine that cannot.
    """

    def __init__(self, model: Model, workers: int | None = None) -> None:
        count = workers or (2 if isinstance(model.backend, Shareable) else 1)
        self.models = (model, *(model.share() for _ in range(count - 1)))
        self._idle, self._returned = list(self.models), threading.Condition()

    def take(self) -> Model:
        """Returns a model that is free, at once or after a wait."""
        with self._returned:
            self._returned.wait_for(lambda: self._idle)
            return self._idle.pop()

    def take_while(self, wanted: Callable[[], bool]) -> Model | None:
        """Returns a model that is free; None once the request is not wanted any more, which is checked every POLL."""
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
