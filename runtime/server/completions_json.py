"""Writes answers as JSON of OpenAI's chat and completions APIs: whole replies, and the chunks of a stream."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ..text.tokenizer import BROKEN
from .events import End, Event, Failure, FinishedBlock, ShownBlock, Token
from .http_errors import Refusal
from .request import ServerRequest

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
LEAST = 1e-30  # smaller confidences are raised to this one: JSON has no number for the logarithm of 0


@dataclass(frozen=True, slots=True)
class Reply:
    """Writes one reply. requests: the request of each choice; cached: whether the model keeps a KV cache."""

    requests: Sequence[ServerRequest]
    model: str
    cached: bool
    last: ClassVar[bytes] = b"data: [DONE]\n\n"  # ends a stream
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    _ends: list[End] = field(default_factory=list)  # the Ends that the stream has sent

    @property
    def first(self) -> ServerRequest:
        """Returns the first request, for fields that are the same in all."""
        return self.requests[0]

    def make_body(self, answers: Sequence[tuple[Sequence[FinishedBlock], End]]) -> dict[str, Any]:
        """Returns the body of a non-streamed reply. answers: each choice's blocks and End, in the requests' order."""
        choices = [self._make_choice(index, *answer) for index, answer in enumerate(answers)]
        ends = [end for _, end in answers]
        own = [make_own_fields(request, self.cached, end) for request, end in zip(self.requests, ends, strict=True)]
        alone = len(own) == 1
        if not alone:
            choices = [{**choice, "blockstep": values} for choice, values in zip(choices, own, strict=True)]
        body = {**self._make_head(False), "choices": choices, "usage": self._count_usage(ends)}
        return {**body, "blockstep": own[0]} if alone else body

    def _make_choice(self, index: int, finished: Sequence[FinishedBlock], end: End) -> dict[str, Any]:
        text = "".join(block.text for block in finished)
        scores = self._make_logprobs([token for block in finished for token in block.tokens], len(text))
        choice: dict[str, Any] = {"index": index, "logprobs": scores, "finish_reason": _name_reason(end)}
        if self.first.chat:
            call = self._make_call(end)
            content = {"content": text} if call is None else {"content": None, "tool_calls": [call]}
            return {**choice, "message": {"role": "assistant", **content, "refusal": None}}
        return {**choice, "text": text}

    def make_chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        """Returns a stream's chunks for an event of one choice."""
        if isinstance(event, ShownBlock):
            return [self.make_canvas(index, event)]
        if isinstance(event, FinishedBlock):
            return self.make_block(index, event)
        if isinstance(event, Failure):
            return [make_refusal(event).body]
        return self.make_closing(index, event)

    def make_opening(self) -> list[dict[str, Any]]:
        """Returns the chunks that a stream begins with."""
        return [self._make_chunk(0, {"role": "assistant", "content": ""}, None, None)] if self.first.chat else []

    def make_block(self, index: int, block: FinishedBlock) -> list[dict[str, Any]]:
        """Returns the chunk of a finished block; none if the block has neither text nor tokens to send."""
        if not (block.text or block.tokens):
            return []
        scores = self._make_logprobs(block.tokens, None)
        chunk = self._make_chunk(index, {"content": block.text} if self.first.chat else block.text, scores, None)
        if self.first.canvas and (self.first.decision is None or block.tokens):  # a decision has no canvas to show
            tokens = [_make_cell(t.completes, t.confidence, t.step) for t in block.tokens]
            chunk["canvas"] = {
                "index": index,
                "block": block.block,
                "done": True,
                "cells": tokens,
                **format_counts(block),
            }
        return [chunk]

    def make_canvas(self, index: int, canvas: ShownBlock) -> dict[str, Any]:
        """Returns the unfinished block as a chunk without choices, which OpenAI's clients ignore."""
        cells = [_make_cell(c.text, c.confidence, c.step) for c in canvas.cells]
        shown = {"index": index, "block": canvas.block, "done": False, "cells": cells, **format_counts(canvas)}
        return {**self._make_head(True), "choices": [], "canvas": shown}

    def make_closing(self, index: int, end: End) -> list[dict[str, Any]]:
        """Returns a choice's last chunks: a function call, if any, and its finish reason.

        After the last choice, a chunk with the usage follows if it is requested.
        """
        last = self._make_chunk(index, {} if self.first.chat else "", None, _name_reason(end))
        last["blockstep"] = make_own_fields(self.requests[index], self.cached, end)
        call = self._make_call(end)
        chunks = [] if call is None else [self._make_chunk(index, {"tool_calls": [{"index": 0, **call}]}, None, None)]
        self._ends.append(end)
        if not self.first.usage or len(self._ends) < len(self.requests):
            return [*chunks, last]
        return [*chunks, last, {**self._make_head(True), "choices": [], "usage": self._count_usage(self._ends)}]

    def _make_call(self, end: End) -> dict[str, Any] | None:
        """Returns the function call, None if no function is called."""
        if end.decided is None or end.decided.function is None:
            return None
        function = {"name": end.decided.function, "arguments": end.decided.arguments}
        return {"id": f"call_{self.id}", "type": "function", "function": function}

    def _make_head(self, streamed: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * streamed) if self.first.chat else "text_completion"
        start = "chatcmpl-" if self.first.chat else "cmpl-"
        return {"id": start + self.id, "object": kind, "created": self.created, "model": self.model}

    def _make_chunk(self, index: int, content: dict[str, Any] | str, scores: Any, reason: str | None) -> dict[str, Any]:
        name = "delta" if self.first.chat else "text"
        choice = {"index": index, name: content, "logprobs": scores, "finish_reason": reason}
        return {**self._make_head(True), "choices": [choice], **({"usage": None} if self.first.usage else {})}

    def _count_usage(self, ends: Sequence[End]) -> dict[str, int]:
        """Returns the token counts over all prompts and answers."""
        prompt, tokens = sum(len(request.prompt) for request in self.requests), sum(end.counts.tokens for end in ends)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def _make_logprobs(self, tokens: Sequence[Token], length: int | None) -> dict[str, Any] | None:
        """Returns log-probabilities, None if not requested.

        length: number of characters in the text; tokens past it, cut by a stop string, are left out. None keeps all.
        """
        if not self.first.logprobs:
            return None
        tokens = [token for token in tokens if length is None or token.offset < length]
        logs = [math.log(max(token.confidence, LEAST)) for token in tokens]
        if self.first.chat:
            entries = [_make_entry(token, log) for token, log in zip(tokens, logs, strict=True)]
            best: list[list[Any]] = [[dict(entry)] if self.first.best else [] for entry in entries]
            return {"content": [{**e, "top_logprobs": b} for e, b in zip(entries, best, strict=True)], "refusal": None}
        texts = [token.text for token in tokens]
        top = [{text: log} for text, log in zip(texts, logs, strict=True)] if self.first.best else None
        offsets = [token.offset for token in tokens]
        return {"tokens": texts, "token_logprobs": logs, "top_logprobs": top, "text_offset": offsets}


def make_own_fields(request: ServerRequest, cached: bool, end: End) -> dict[str, Any]:
    """Returns the values for which OpenAI's API has no field."""
    done = end.counts
    low, high = end.thresholds or (None, None)
    return {
        "finish": end.finish,
        **asdict(done),
        "tokens_per_forward": done.tokens / max(1, done.forwards),
        "one_a_step": done.one_a_step,
        "cached": cached,
        "threshold": low,
        "highest_threshold": high,
        "seed": request.options.seed,
        **({} if end.decided is None else {"decision": end.decided.decision.as_json()}),
    }


def make_refusal(event: Failure) -> Refusal:
    """Returns the error that a client gets for a failed answer."""
    return Refusal(400, event.message) if event.mistake else Refusal(500, event.message, code="failed")


def _name_reason(end: End) -> str:
    """Returns why a choice ended, in OpenAI's terms."""
    called = end.finish == "eos" and end.decided is not None and end.decided.function is not None
    return "tool_calls" if called else REASONS[end.finish]


def format_counts(event: ShownBlock | FinishedBlock) -> dict[str, int]:
    """Returns an answer's progress, for display."""
    return {**asdict(event.counts), "one_a_step": event.counts.one_a_step}


def _make_entry(token: Token, log: float) -> dict[str, Any]:
    whole = BROKEN not in token.text  # a token that ends inside a character, whose bytes are not known here
    return {"token": token.text, "logprob": log, "bytes": list(token.text.encode()) if whole else None}


def _make_cell(text: str, confidence: float | None, step: int | None) -> dict[str, Any]:
    return {"text": text, "confidence": confidence if confidence is None else round(confidence, 4), "step": step}
