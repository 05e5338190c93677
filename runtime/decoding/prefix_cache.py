"""Implements prefix caching: the KV cache keeps the blocks that a prompt shares with the last prompt and its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..backend import Backend, Ints
from ..contract import GateSpec
from .batch import Batch, Step
from .block_layout import check_reuse, count_reusable
from .loop import ProgressMaker
from .options import OptionKeywords, Request
from .request_state import Progress
from .sequence import NOTHING

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


class Session:
    """Decodes one request at a time, with prefix caching, on a backend that nothing else uses meanwhile.

    Whole blocks that a prompt shares with the last prompt and its answer are not prefilled again, as in a conversation,
    or after a text that all prompts start with; in fp32 the answer is the same. The KV cache is opened at the first
    request, and again after an error or `forget`, for the contract's whole capacity. gate: replaces the contract's.
    Raises UserError for models that cannot reuse a prefix, see `block_layout.check_reuse`.
    """

    def __init__(self, backend: Backend, gate: GateSpec | None = None) -> None:
        check_reuse(backend.contract)
        self._backend, self._gate = backend, gate
        self._batch: Batch | None = None
        self._last: tuple[Ints, Progress] | None = None  # the last prompt and the state of its answer

    def steps(self, request: Request, **options: Unpack[OptionKeywords]) -> Iterator[list[Step]]:
        """Yields what `loop.decode_steps` yields. If it is closed early, what was committed until then is kept."""
        contract = self._backend.contract
        begin = ProgressMaker(contract, self._gate, options)
        committed, last_prompt = self._find_committed()
        progress = begin(0, request, count_reusable(contract, committed, last_prompt, request.prompt))
        batch = self._batch or Batch(self._backend, begin.rule, 1, contract.capacity)
        batch.clear()
        batch.fit()  # no request runs: the time since the last answer is not this one's
        batch.add(progress)
        while progress.result is None:
            self._batch = self._last = None  # what the KV cache has is unknown while it runs
            done = batch.step()
            self._batch, self._last = batch, (request.prompt, progress)
            if done:
                yield done

    def forget(self) -> None:
        """Treats the KV cache as empty from now on, since the backend was used otherwise."""
        self._batch = self._last = None

    def _find_committed(self) -> tuple[Ints, int]:
        """Returns the ids that are committed in the KV cache [length], and the length of the prompt at their start."""
        if self._last is None:
            return NOTHING, 0
        prompt, progress = self._last
        return np.concatenate((prompt, np.array(progress.answer, np.int64)))[: progress.sequence.past], len(prompt)
