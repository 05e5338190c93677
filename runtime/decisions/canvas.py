"""A model's predictions for masked positions of a form: forward passes over the KV cache, or over the whole canvas.

A position is predicted from its block, in which the form's words and the decided values are known and all other
positions are masks, and from the blocks before it, which are committed. Which row predicts it, what each position sees
and at which positions blocks begin is the contract's (`decoding.block_layout`); with a next-token shift, and for the
first position of a seeded block, the last committed token is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backend import Backend, Floats, Forkable, Forward, Ints, Proposal
from ..contract import Contract
from ..decoding.block_layout import (
    check_ids,
    check_room,
    compute_block_bounds,
    compute_block_ends,
    compute_committed_ends,
    count_positions,
)
from ..errors import NumericalError, UserError
from .pieces import Ids

MOST_COPIES = 16  # canvases per forward pass, each with its own KV cache
COPIED_BYTES = 512 << 20  # of these KV caches together: a long prompt of a large model must not exhaust a device
FLOAT = 4  # bytes per KV-cache number in fp32; other precisions take no more
NEVER = -1e29  # a log-probability below this means that the graph bars the token


class OutOfForwards(Exception):
    """Ends a decision: `max_forwards` forward passes have been run, or the decision is not wanted any more."""


@dataclass(frozen=True, slots=True)
class TokenQuery:
    """Requests the log-probabilities of some tokens at one masked position.

    ids: the sequence after what is known to all queries, up to the form's end or as far as it is known; what follows
    are masks. position: counted from the prompt's first token. tokens: different ones.
    """

    ids: Ids
    position: int
    tokens: Ids


@dataclass(frozen=True, slots=True)
class Window:
    """Holds one canvas of a forward pass: its tokens from the pass's first position on, and the requested rows."""

    ids: Ids
    rows: tuple[int, ...]
    tokens: tuple[Ids, ...]


class Canvas:
    """Runs one form on a backend, which it opens. forwards: forward passes so far, without the prompt's prefill.

    tokens: the most that the form has. Raises UserError if prompt and form do not fit the model.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: Ints,
        tokens: int,
        max_forwards: int | None,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        contract = backend.contract
        check_ids(contract, prompt)
        check_room(contract, len(prompt), tokens)
        self.contract, self._backend, self._left = contract, backend, max_forwards
        self.forwards = self._past = 0
        self._wanted = wanted
        room = count_positions(contract, len(prompt), tokens)
        self._begins, self._ends = (
            part.tolist() for part in compute_block_bounds(contract, len(prompt), room - len(prompt))
        )
        self._canvas_ends = compute_block_ends(contract, len(prompt), room - len(prompt))
        self._committed = compute_committed_ends(contract, len(prompt), room - len(prompt))
        if contract.attention == "causal":  # masks see no more than other tokens do
            self._canvas_ends = self._committed
        self.room, self._prompt = room, len(prompt)
        self._copies = count_copies(backend, room)
        backend.open(1, room)

    def find_block(self, position: int) -> tuple[int, int]:
        """Returns begin and end of the block in which a position is decoded: for a `full` model the whole canvas."""
        if not self.contract.has_cache:
            return self._prompt, self.room
        return self._begins[position], self._ends[position]

    def find_decoded_block(self, position: int) -> tuple[int, int]:
        """Returns the same as in ordinary decoding, which has blocks in a `full` model too."""
        return self._begins[position], self._ends[position]

    def rewind(self, position: int) -> None:
        """Drops committed tokens from the beginning of the position's block on."""
        self._past = min(self._past, self._begins[position])

    def score_tokens(self, queries: Sequence[TokenQuery], known: Ids) -> list[Floats]:
        """Returns the log-probabilities of each query's tokens, in as few forward passes as the backend can.

        known: the sequence from the prompt's first token as far as it is decided, the same for all queries. Raises
        OutOfForwards if `max_forwards` are not enough, NumericalError for scores that are not numbers, and UserError
        for a token that the model bars.
        """
        rows = [self._find_row(query.position) for query in queries]
        decided = self._begins[len(known)]
        windows: dict[Ids, list[int]] = {}  # queries by what their canvas has after `known`
        for number, query in enumerate(queries):
            end = self.find_block(query.position)[1]
            windows.setdefault(self._cut(query.ids, 0, end - len(known)), []).append(number)
        several = self._copies > 1 and len(windows) > 1
        # Copies share what is committed, and canvases that run in turn would compute a whole prompt each.
        if (several or (len(windows) > 1 and self.contract.has_cache and not self._past)) and self._past < decided:
            self._commit(known, decided)
        first = self._find_first(rows)
        cut = [
            Window(known[first:] + ids, tuple(rows[i] - first for i in own), tuple(queries[i].tokens for i in own))
            for ids, own in windows.items()
        ]
        found: list[Floats] = [np.zeros(0, np.float32)] * len(queries)
        size = self._copies if several else 1
        for start in range(0, len(cut), size):
            together, places = cut[start : start + size], list(windows.values())[start : start + size]
            made = self._run(together, first, decided)
            for row, own in enumerate(places):
                for place, number in enumerate(own):
                    found[number] = check_log_probs(
                        made[row, place, : len(queries[number].tokens)], queries[number].tokens
                    )
        return found

    def propose(self, ids: Ids, positions: Sequence[int]) -> Proposal:
        """Returns what the model predicts at masked positions [n] of one block.

        positions[0] is the first position without a token.
        """
        rows = [self._find_row(position) for position in positions]
        first = self._find_first(rows)
        window = self._cut(ids, first, self.find_block(positions[0])[1])
        self._spend()
        out = self._backend.forward(self._forward([Window(window, tuple(row - first for row in rows), ())], first))
        self._past = max(self._past, self._begins[positions[0]]) if self.contract.has_cache else 0
        if not np.isfinite(out.confidence).all() or not np.isfinite(out.entropy).all():
            raise make_not_finite_error()
        return Proposal(out.token[0], out.confidence[0], out.entropy[0])

    def _find_row(self, position: int) -> int:
        """Returns the logits row that predicts a position."""
        own = self.contract.seeded and position == self._begins[position]
        return position - int(self.contract.shift or own)

    def _find_first(self, rows: Sequence[int]) -> int:
        """Returns the first position of a forward pass that has these rows in it."""
        return min(self._past, *rows) if self.contract.has_cache else 0

    def _cut(self, ids: Ids, first: int, end: int) -> Ids:
        return (ids + (self.contract.mask_id,) * (end - len(ids)))[first:end]

    def _spend(self) -> None:
        if self._left is not None and self.forwards >= self._left:
            raise OutOfForwards
        if self._wanted is not None and not self._wanted():
            raise OutOfForwards
        self.forwards += 1

    def _commit(self, ids: Ids, end: int) -> None:
        """Writes decided tokens into the KV cache, up to the position `end`."""
        if self._past:  # otherwise this is the prompt's prefill, which is not counted
            self._spend()
        window = Window(ids[self._past : end], (end - self._past - 1,), ())
        self._backend.forward(self._forward([window], self._past, committed=True))
        self._past = end

    def _run(self, windows: Sequence[Window], first: int, decided: int) -> Floats:
        """Returns the log-probabilities of the windows' tokens. [windows, rows, tokens], padded to the largest window.

        decided: the pass commits the positions before this one.
        """
        self._spend()
        several = len(windows) > 1
        if several and isinstance(self._backend, Forkable):
            self._backend.fork(len(windows))
        try:
            out = self._backend.forward(self._forward(windows, first))
        finally:
            if several and isinstance(self._backend, Forkable):
                self._backend.fork(1)
        if self.contract.has_cache:
            self._past = max(self._past, decided)
        if out.candidate_logprob is None:
            raise ValueError("the engine gave no log-probabilities of the candidates")
        return out.candidate_logprob

    def _forward(self, windows: Sequence[Window], first: int, committed: bool = False) -> Forward:
        """Returns the windows as one batch, padded to the widest; padding sees one position, and no token sees it."""
        width, batch = max(len(window.ids) for window in windows), len(windows)
        n = max(len(window.rows) for window in windows)
        ids = np.full((batch, width), self.contract.pad_id, np.int64)
        visible, rows = np.ones((batch, width), np.int64), np.zeros((batch, n), np.int64)
        for place, window in enumerate(windows):
            end = first + len(window.ids)
            begin = (
                end if committed else self.find_block(end - 1)[0]
            )  # of the canvas; all positions before are committed
            seen = np.where(np.arange(first, end) < begin, self._committed[first:end], self._canvas_ends[first:end])
            ids[place, : len(window.ids)], visible[place, : len(window.ids)] = window.ids, seen
            rows[place, : len(window.rows)] = window.rows
        forward = Forward(ids, np.full(batch, first), visible, rows)
        count = max((len(tokens) for window in windows for tokens in window.tokens), default=0)
        if not count:
            return forward
        candidates = np.full((batch, n, count), self.contract.eos_ids[0], np.int64)  # padding: a token not barred
        for place, window in enumerate(windows):
            for row, tokens in enumerate(window.tokens):
                candidates[place, row, : len(tokens)] = tokens
        return replace(forward, candidates=candidates)


def count_copies(backend: Backend, room: int) -> int:
    """Returns how many canvases of `room` positions share a forward pass: as many as the engine takes, up to
    MOST_COPIES, whose KV caches have at most COPIED_BYTES; 1 if not even two fit."""
    contract = backend.contract
    if not isinstance(backend, Forkable) or not contract.has_cache:
        return 1
    positions = 1 << (room - 1).bit_length()  # ONNX Runtime's KV caches are as long as powers of two
    each = 2 * contract.layers * contract.kv_heads * contract.head_dim * positions * FLOAT
    return max(1, min(MOST_COPIES, backend.most_copies, COPIED_BYTES // each))


def check_log_probs(log_probs: Floats, tokens: Ids) -> Floats:
    """Returns the log-probabilities. Raises NumericalError for NaN or +infinity, UserError for a barred token."""
    if np.isnan(log_probs).any() or (log_probs == np.inf).any():
        raise make_not_finite_error()
    barred = [token for token, log_prob in zip(tokens, log_probs.tolist(), strict=True) if log_prob < NEVER]
    if barred:
        raise UserError(f"a value holds the token {barred[0]}, which this model never gives; choose another text")
    return log_probs


def make_not_finite_error() -> NumericalError:
    """Returns the error for scores that are not finite."""
    return NumericalError(
        "the model's scores are not finite numbers (NaN or infinity); its weights or engine are damaged"
    )


def check_contract(contract: Contract) -> None:
    """Raises UserError for a bundle whose graph gives no log-probabilities of candidates."""
    if not contract.candidates:
        raise UserError(
            "this bundle's graph gives no log-probabilities of candidates, which decisions are made of; export it with "
            "--candidates 64"
        )
