"""Predicts masked positions of a form: forward passes over the KV cache, or over the whole canvas.

A position is predicted from its block, in which the form's words and the decided values are known and all other
positions are masks, and from the blocks before it, which are committed. The contract (`decoding.block_layout`) defines
which row predicts a position, what each position sees, and at which positions blocks begin; with a next-token shift,
and for the first position of a seeded block, the last committed token is run again.
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
from .encoded_form import Ids

MAX_COPIES = 16  # canvases per forward pass, each with its own KV cache
MAX_COPY_BYTES = 512 << 20  # of these KV caches together: a long prompt of a large model must not exhaust a device
FP32_BYTES = 4  # per KV-cache number; other precisions take no more
BARRED_BELOW = -1e29  # a log-probability below this means that the graph bars the token


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
    """Holds one canvas of a forward pass.

    ids: its tokens from the pass's first position on. rows: positions to predict, as indices of `ids`. candidates: per
    row, the tokens whose log-probabilities are requested.
    """

    ids: Ids
    rows: tuple[int, ...]
    candidates: tuple[Ids, ...]


class Canvas:
    """Runs one form on a backend, which it opens. forwards: forward passes so far, without the prompt's prefill.

    max_tokens: the maximum number of tokens that the form has. Raises UserError if prompt and form do not fit the
    model.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: Ints,
        max_tokens: int,
        max_forwards: int | None,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        contract = backend.contract
        check_ids(contract, prompt)
        check_room(contract, len(prompt), max_tokens)
        self.contract, self._backend, self._max_forwards = contract, backend, max_forwards
        self.forwards = self._past_length = 0
        self._wanted = wanted
        self._prompt_length, self._length = len(prompt), count_positions(contract, len(prompt), max_tokens)
        layout = (contract, len(prompt), self._length - len(prompt))
        self._block_begins, self._block_ends = (bounds.tolist() for bounds in compute_block_bounds(*layout))
        # The attention prefix length of each position, while its block is a canvas and once it is committed.
        self._canvas_prefix_lengths = compute_block_ends(*layout)
        self._committed_prefix_lengths = compute_committed_ends(*layout)
        if contract.attention == "causal":  # masks see no more than other tokens do
            self._canvas_prefix_lengths = self._committed_prefix_lengths
        self._max_copies = count_copies(backend, self._length)
        backend.open(1, self._length)

    def find_block(self, position: int) -> tuple[int, int]:
        """Returns begin and end of the block in which a position is decoded: for a `full` model the whole canvas."""
        if not self.contract.has_cache:
            return self._prompt_length, self._length
        return self._block_begins[position], self._block_ends[position]

    def find_decoded_block(self, position: int) -> tuple[int, int]:
        """Returns the same as in ordinary decoding, which has blocks in a `full` model too."""
        return self._block_begins[position], self._block_ends[position]

    def rewind(self, position: int) -> None:
        """Drops committed tokens from the beginning of the position's block on."""
        self._past_length = min(self._past_length, self._block_begins[position])

    def score_tokens(self, queries: Sequence[TokenQuery], known_ids: Ids) -> list[Floats]:
        """Returns the log-probabilities of each query's tokens, in as few forward passes as the backend can.

        known_ids: the sequence from the prompt's first token as far as it is decided, the same for all queries. Raises
        OutOfForwards if `max_forwards` are not enough, NumericalError for scores that are not numbers, and UserError
        for a token that the model bars.
        """
        rows = [self._find_row(query.position) for query in queries]
        block_begin = self._block_begins[len(known_ids)]
        by_canvas: dict[Ids, list[int]] = {}  # query indices by what their canvas has after `known_ids`
        for index, query in enumerate(queries):
            end = self.find_block(query.position)[1]
            by_canvas.setdefault(self._slice(query.ids, 0, end - len(known_ids)), []).append(index)
        with_copies = self._max_copies > 1 and len(by_canvas) > 1
        repeats_prefill = len(by_canvas) > 1 and self.contract.has_cache and not self._past_length
        # Copies share what is committed, and canvases that run in turn would compute a whole prompt each.
        if (with_copies or repeats_prefill) and self._past_length < block_begin:
            self._commit(known_ids, block_begin)
        first = self._find_first(rows)
        windows = [
            Window(
                known_ids[first:] + ids,
                tuple(rows[i] - first for i in indices),
                tuple(queries[i].tokens for i in indices),
            )
            for ids, indices in by_canvas.items()
        ]
        query_indices, size = list(by_canvas.values()), self._max_copies if with_copies else 1
        log_probs: list[Floats] = [np.zeros(0, np.float32)] * len(queries)
        for start in range(0, len(windows), size):
            batch = self._run(windows[start : start + size], first, block_begin)
            for window_log_probs, indices in zip(batch, query_indices[start : start + size], strict=False):
                for row_log_probs, index in zip(window_log_probs, indices, strict=False):
                    tokens = queries[index].tokens
                    log_probs[index] = check_log_probs(row_log_probs[: len(tokens)], tokens)
        return log_probs

    def propose(self, ids: Ids, positions: Sequence[int]) -> Proposal:
        """Returns what the model predicts at masked positions [n] of one block.

        positions[0] is the first position without a token.
        """
        rows = [self._find_row(position) for position in positions]
        first = self._find_first(rows)
        window = Window(
            self._slice(ids, first, self.find_block(positions[0])[1]), tuple(row - first for row in rows), ()
        )
        self._count_forward()
        out = self._backend.forward(self._make_forward([window], first))
        begin = self._block_begins[positions[0]]
        self._past_length = max(self._past_length, begin) if self.contract.has_cache else 0
        if not np.isfinite(out.confidence).all() or not np.isfinite(out.entropy).all():
            raise make_not_finite_error()
        return Proposal(out.token[0], out.confidence[0], out.entropy[0])

    def _find_row(self, position: int) -> int:
        """Returns the logits row that predicts a position."""
        is_seed = self.contract.seeded and position == self._block_begins[position]
        return position - int(self.contract.shift or is_seed)

    def _find_first(self, rows: Sequence[int]) -> int:
        """Returns the first position of a forward pass that includes these rows."""
        return min(self._past_length, *rows) if self.contract.has_cache else 0

    def _slice(self, ids: Ids, begin: int, end: int) -> Ids:
        """Returns the ids from `begin` to `end`, with masks after the last id."""
        return (ids + (self.contract.mask_id,) * (end - len(ids)))[begin:end]

    def _count_forward(self) -> None:
        """Counts a forward pass that is about to run. Raises OutOfForwards if it must not run."""
        if self._max_forwards is not None and self.forwards >= self._max_forwards:
            raise OutOfForwards
        if self._wanted is not None and not self._wanted():
            raise OutOfForwards
        self.forwards += 1

    def _commit(self, ids: Ids, end: int) -> None:
        """Writes decided tokens into the KV cache, up to the position `end`."""
        if self._past_length:  # otherwise this is the prompt's prefill, which is not counted
            self._count_forward()
        window = Window(ids[self._past_length : end], (end - self._past_length - 1,), ())
        self._backend.forward(self._make_forward([window], self._past_length, is_commit=True))
        self._past_length = end

    def _run(self, windows: Sequence[Window], first: int, block_begin: int) -> Floats:
        """Returns the log-probabilities of the windows' candidates, padded to the most rows and candidates of a window.

        [windows, rows, candidates]. block_begin: the pass commits the positions before this one.
        """
        self._count_forward()
        several = len(windows) > 1
        if several and isinstance(self._backend, Forkable):
            self._backend.fork(len(windows))
        try:
            out = self._backend.forward(self._make_forward(windows, first))
        finally:
            if several and isinstance(self._backend, Forkable):
                self._backend.fork(1)
        if self.contract.has_cache:
            self._past_length = max(self._past_length, block_begin)
        if out.candidate_logprob is None:
            raise ValueError("the engine gave no log-probabilities of the candidates")
        return out.candidate_logprob

    def _make_forward(self, windows: Sequence[Window], first: int, is_commit: bool = False) -> Forward:
        """Returns the windows as one batch, padded to the widest; padding sees one position, and no token sees it."""
        width, batch = max(len(window.ids) for window in windows), len(windows)
        n = max(len(window.rows) for window in windows)
        ids = np.full((batch, width), self.contract.pad_id, np.int64)
        visible, rows = np.ones((batch, width), np.int64), np.zeros((batch, n), np.int64)
        for index, window in enumerate(windows):
            end = first + len(window.ids)
            canvas_begin = end if is_commit else self.find_block(end - 1)[0]  # all positions before it are committed
            ids[index, : len(window.ids)] = window.ids
            visible[index, : len(window.ids)] = np.where(
                np.arange(first, end) < canvas_begin,
                self._committed_prefix_lengths[first:end],
                self._canvas_prefix_lengths[first:end],
            )
            rows[index, : len(window.rows)] = window.rows
        forward = Forward(ids, np.full(batch, first), visible, rows)
        count = max((len(tokens) for window in windows for tokens in window.candidates), default=0)
        if not count:
            return forward
        candidates = np.full((batch, n, count), self.contract.eos_ids[0], np.int64)  # padding: a token not barred
        for index, window in enumerate(windows):
            for row, tokens in enumerate(window.candidates):
                candidates[index, row, : len(tokens)] = tokens
        return replace(forward, candidates=candidates)


def count_copies(backend: Backend, length: int) -> int:
    """Returns how many canvases of `length` positions share a forward pass: as many as the engine takes, up to
    MAX_COPIES, whose KV caches have at most MAX_COPY_BYTES; 1 if not even two fit."""
    contract = backend.contract
    if not isinstance(backend, Forkable) or not contract.has_cache:
        return 1
    positions = 1 << (length - 1).bit_length()  # ONNX Runtime's KV caches are as long as powers of two
    copy_bytes = 2 * contract.layers * contract.kv_heads * contract.head_dim * positions * FP32_BYTES
    return max(1, min(MAX_COPIES, backend.most_copies, MAX_COPY_BYTES // copy_bytes))


def check_log_probs(log_probs: Floats, tokens: Ids) -> Floats:
    """Returns the log-probabilities. Raises NumericalError for NaN or +infinity, UserError for a barred token."""
    if np.isnan(log_probs).any() or (log_probs == np.inf).any():
        raise make_not_finite_error()
    barred = [token for token, log_prob in zip(tokens, log_probs.tolist(), strict=True) if log_prob < BARRED_BELOW]
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
