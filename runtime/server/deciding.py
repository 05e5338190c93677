"""The decision of a request: a call of a function, text of a schema, or that ordinary text follows."""

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
class Decided:
    """What was decided.

    function, arguments: the call and its arguments as JSON text, None and "" if none; text: the reply's text, None if
    it was not decided. All fields of the decision are in `decision`, also those of a choice before. tokens: of what was
    written.
    """

    function: str | None
    arguments: str
    text: str | None
    decision: TypedDecision[Any]
    tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the reply, and no ordinary text follows."""
        return self.function is not None or self.text is not None or self.decision.partial

    @property
    def finish(self) -> str:
        """Why it ended, as of an answer."""
        return "length" if self.decision.partial else "eos"


def decide(model: Model, ask: ServerRequest, threshold: Threshold | None, still: Callable[[], bool]) -> Decided:
    """Decides what the request wants decided, on a model that is free. threshold: of free texts; still: whether
    it is wanted, without which it ends partial.

    Raises what `Model.decide_form` raises.
    """
    wanted = ask.decision
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
        call = decide_call(model, ask.prompt, wanted.functions, wanted.optional, **keywords)
        before = call.decision
        if call.name is not None or before.partial or wanted.text is None:
            return Decided(call.name, call.arguments, None, before, _tokens(model, before.text))
    if wanted.text is None:
        raise ValueError("the request has neither functions nor a schema")
    if before is not None and wanted.max_forwards is not None:
        if wanted.max_forwards <= before.forwards:
            return Decided(None, "", None, replace(before, partial=True), 0)
        keywords["max_forwards"] = wanted.max_forwards - before.forwards
    decision = decide_schema(model, ask.prompt, wanted.text, **keywords)
    tokens = _tokens(model, decision.text)
    if before is not None:
        fields, forwards = (*before.fields, *decision.fields), before.forwards + decision.forwards
        decision = replace(decision, fields=fields, forwards=forwards)
    return Decided(None, "", decision.text, decision, tokens)


def _tokens(model: Model, text: str) -> int:
    return len(model.tokenizer.encode(text)) if text else 0
