"""A loaded bundle and its three levels of answering: one canvas step, a stream of finished blocks, the whole answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import decode, ort_cuda, trial
from .backend import Backend, Ints, Shareable
from .batch import Step
from .contract import Contract, GateSpec
from .cores import usual_threads
from .decode import Request, Threshold
from .errors import UserError
from .layout import check_room, check_suffix, room_before_suffix, room_for_answer
from .sample import check_sampling, sampler
from .sequence import Result
from .session import Session

if TYPE_CHECKING:
    from .manifest import Bundle, Engine
    from .text import Tokenizer

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
    """A whole answer: its text, without the end token, and the fields of `runtime.sequence.Result`."""

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
        return collect(blocks(self._steps(request, threshold, fused), self.tokenizer))

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
        self, prompt: Prompt, *, max_new_tokens: int | None = None, raw: bool = False, suffix: Prompt = "",
        temperature: float = 0.0, seed: int | None = None,
    ) -> Request:  # fmt: skip
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
                made = decode.steps(self.backend, [request], threshold=threshold, gate=self.gate, fused=fused)
            else:
                made = self._session.steps(request, threshold=threshold, fused=fused)
            for done in made:
                yield from done
        finally:
            self._busy.release()


def load(
    path: str | Path, *, engine: str | None = None, threads: int | None = None, verify: str = "first",
    device: str = "cpu", trust_engine: bool = False, template_args: Mapping[str, Any] | None = None,
) -> Model:  # fmt: skip
    """The model in a bundle's folder, ready to answer.

    engine: one that the manifest names, or `ort` or `trt` for the first of that kind that runs here, by default the
    first for ONNX Runtime; threads: of a forward pass, by default the physical cores within the CPU quota, or one for a
    small int8 engine; verify: `first` checks the files' hashes and tries the files in a process of their own, on the
    CPU whatever the device, once, and then remembers them, `always` every time; device: `cpu` or `cuda`, of an ONNX
    Runtime engine, `cuda` for the first that CUDA has kernels for (fp16); trust_engine: load a TensorRT engine, which
    is native code, though this machine did not build it; template_args: default arguments of the chat template, over
    the bundle's own, such as {"enable_thinking": False}. Raises UserError for a bundle, engine, package, driver or GPU
    that is missing or does not fit, and for files that crash, hang or take all memory.
    """
    from .bundle import read
    from .chat_template import with_arguments
    from .text import Tokenizer

    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1")
    bundle = read(Path(path))
    template = with_arguments(bundle.chat_template, template_args) if template_args else bundle.chat_template
    found = bundle.matching(engine)
    if found[0].build is None:
        chosen = found[0] if device == "cpu" else ort_cuda.select_engine(bundle, found)
        backend = _on_ort(bundle, chosen, threads, verify, device)
    else:
        chosen, backend = _on_tensorrt(bundle, found, verify, trust_engine)
    tokenizer = Tokenizer(bundle.tokenizer, template)
    return Model(backend, tokenizer, chosen.gate or bundle.contract.gate, chosen.name, chosen.precision)


def _on_ort(bundle: Bundle, engine: Engine, threads: int | None, verify: str, device: str) -> Backend:
    from .bundle import verify_files

    try:
        from .ort import OrtBackend
    except ModuleNotFoundError as error:
        install = "pip install 'onnxruntime>=1.30'" if device == "cpu" else ort_cuda.install_line()
        raise UserError(f"{error.name} is not installed; {install}") from None
    if device != "cpu":
        ort_cuda.check_available()
    verify_files(bundle, engine, verify, lambda: trial.attempt(bundle, engine, threads))
    size = sum((bundle.path / name).stat().st_size for name in engine.files)
    threads = threads or usual_threads(engine.precision, size)
    return OrtBackend(bundle.path / engine.model, bundle.contract, threads, device, engine.files)


def _on_tensorrt(bundle: Bundle, engines: Sequence[Engine], verify: str, trust: bool) -> tuple[Engine, Backend]:
    from .bundle import verify_files
    from .trt_backend import open_engines

    texts = replace(engines[0], files={})  # the engine's own file is hashed as it is read, and trusted or not loaded
    verify_files(bundle, texts, verify, lambda: trial.attempt(bundle, None))
    backend = open_engines(bundle, engines, trust=trust)
    return backend.engines[0], backend


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


def collect(stream: Iterable[Block]) -> Answer:
    """The answer that a stream of blocks makes, taken to its end."""
    pieces, result = [], None
    for block in stream:
        pieces.append(block.text)
        result = block.result
    if result is None:
        raise ValueError("the stream ended before its last block")
    return Answer(text="".join(pieces), **asdict(result))
