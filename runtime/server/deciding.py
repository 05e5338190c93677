"""Runs the decision of a request: a function call, text of a schema, or the choice of ordinary text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..decisions.document import TypedDecision
from ..decisions.function_calls import decide_call
from ..decisions.typed import DecisionKeywords, decide_schema
from ..decoding.options import Threshold
from ..model import Model
from .request import ServerRequest


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """Holds what was decided for a request.

    function, arguments: the called function's name and its arguments as JSON text, None and "" without a call; text:
    the reply's text, None if it was not decided; decision: all decided fields, with those of a choice of function
    before the text; tokens: number of tokens in the decided text.
    """

    function: str | None
    arguments: str
    text: str | None
    decision: TypedDecision[Any]
    tokens: int

    @property
    def is_whole(self) -> bool:
        """Returns whether the decision is the whole reply, so that no ordinary text follows."""
        return self.function is not None or self.text is not None or self.decision.partial

    @property
    def finish(self) -> str:
        """Returns why the decision ended, as an `End.finish`."""
        return "length" if self.decision.partial else "eos"


def decide(
    model: Model, request: ServerRequest, threshold: Threshold | None, still: Callable[[], bool]
) -> DecisionResult:
    """Decides what the request wants decided, on a model that runs nothing else. threshold: for free texts.

    still: whether the reply is still wanted; once it returns false, the decision ends and is partial. Raises what
    `Model.decide_form` raises.
    """
    wanted = request.decision
    if wanted is None:
        raise ValueError("the request wants nothing decided")
    keywords: DecisionKeywords = {
        "probability": wanted.probability,
        "max_forwards": wanted.max_forwards,
        "threshold": threshold,
        "wanted": still,
    }
    before: TypedDecision[Any] | None = None
    if wanted.functions:
        call = decide_call(model, request.prompt, wanted.functions, wanted.optional, **keywords)
        before = call.decision
        if call.name is not None or before.partial or wanted.text is None:
            return DecisionResult(call.name, call.arguments, None, before, _count_tokens(model, before.text))
    if wanted.text is None:
        raise ValueError("the request has neither functions nor a schema")
    if before is not None and wanted.max_forwards is not None:
        if wanted.max_forwards <= before.forwards:
            return DecisionResult(None, "", None, replace(before, partial=True), 0)
        keywords["max_forwards"] = wanted.max_forwards - before.forwards
    decision = decide_schema(model, request.prompt, wanted.text, **keywords)
    tokens = _count_tokens(model, decision.text)
    if before is not None:
        fields, forwards = (*before.fields, *decision.fields), before.forwards + decision.forwards
        decision = replace(decision, fields=fields, forwards=forwards)
    return DecisionResult(None, "", decision.text, decision, tokens)


def _count_tokens(model: Model, text: str) -> int:
    return len(model.tokenizer.encode(text)) if text else 0
