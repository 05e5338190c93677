"""Implements causal self-speculation: a model drafts a block and keeps what its own causal predictions confirm.

The answer is the model's causal (autoregressive) one, token for token in fp32, in fewer forward passes. There are two
ways to draft. Either all positions of a block are drafted at once, after the seed: one forward pass drafts, another
verifies (Nemotron-Labs-Diffusion's linear_spec_generate). Or masks follow the tokens that are verified: one forward
pass does both (I-DLM, and `causal_context` with shift, if it is fused). In `causal_context` masks see each other, in
`causal` only what comes before them. Tokens that were not confirmed are not counted as committed, so that later keys
and values overwrite theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

from ..backend import Bools, Ints, Proposal
from ..contract import Contract
from .request_state import Progress, make_empty_proposal
from .sampling import Sampler
from .sequence import NOTHING, Inputs


@final
class Draft:
    """Feeds a model a prompt's tokens, or the seed (the one token known but not committed) and a draft.

    past: how many tokens are in the KV cache. room: the maximum of positions. drafted: tokens that the model predicted
    after the seed, still to be verified. together: whether masks follow them, whose predictions are the next draft if
    all of this one is confirmed; otherwise each draft has its own forward pass.
    """

    __slots__ = (
        "_block", "_causal", "_mask", "_rows_before", "_together", "drafted", "past", "pending", "room", "seed",
    )  # fmt: skip

    def __init__(self, contract: Contract, prompt: Ints, past: int, room: int, together: bool) -> None:
        self._block, self._mask, self._rows_before = contract.block, contract.mask_id, int(contract.shift)
        self._together, self._causal = together, contract.attention == "causal"
        self.past, self.pending, self.room, self.seed = past, prompt[past:], room, -1
        self.drafted = NOTHING

    @property
    def _masks(self) -> int:
        """Returns how many tokens the next forward pass drafts: at most a block with the seed, if there is room."""
        wanted = self._block - 1 if self._together or not len(self.drafted) else 0
        return max(0, min(wanted, self.room - self.past - 1 - len(self.drafted)))

    @property
    def verifies(self) -> bool:
        """Whether the next forward pass confirms tokens; otherwise it only drafts."""
        return self._together or len(self.drafted) > 0 or not self._masks

    @property
    def width(self) -> int:
        """Tokens of the next forward pass."""
        return len(self.pending) or 1 + len(self.drafted) + self._masks

    def inputs(self) -> Inputs:
        """Returns the prompt, whose last row predicts the seed, or seed, draft and masks, with their logits rows."""
        past, pending, masks = self.past, len(self.pending), self._masks
        if pending:
            visible = np.arange(past + 1, past + pending + 1)
            return Inputs(self.pending, visible, past, np.array([pending - 1]), np.zeros(1, np.int64))
        ids = np.concatenate(([self.seed], self.drafted, np.full(masks, self._mask)))
        if self.verifies:
            rows, verified = np.arange(len(ids)), 1 + len(self.drafted)
            visible = past + 1 + rows
            if not self._causal:
                visible[verified:] = past + len(ids)
            return Inputs(ids, visible, past, rows, rows[:verified])
        rows = np.arange(1, len(ids)) - self._rows_before
        return Inputs(ids, np.full(len(ids), past + len(ids)), past, rows, rows - 1 + self._rows_before)

    def commit(self, tokens: int) -> None:
        """Counts the first `tokens` tokens of the last forward pass as committed."""
        self.past += tokens
        self.pending = NOTHING


@final
class SpeculativeProgress(Progress):
    """Decodes a request by drafts and verifications. The tokens that one verification confirms, 1 to `block`, are shown
    as a block."""

    __slots__ = ("confirmed",)

    sequence: Draft

    def __init__(
        self,
        contract: Contract,
        row: int,
        prompt: Ints,
        wanted: int,
        threshold: Callable[[], float],
        fused: bool = True,
        past: int = 0,
        sampler: Sampler | None = None,
    ) -> None:
        together = contract.drafts_ahead and (fused or contract.attention == "causal")
        most = 2 * contract.block - 1 if together else contract.block
        room = min(contract.capacity, len(prompt) + wanted - 1 + most)
        super().__init__(contract, row, "speculative", wanted, room, threshold, sampler)
        self.sequence, self.tail, self.blocks = Draft(contract, prompt, past, room, together), 0, 1
        self.confirmed = False  # whether the canvas holds confirmed tokens; otherwise it holds masks with drafts
        self._show(1)

    @property
    def progress(self) -> float:
        """Returns the share of the answer that is confirmed."""
        return len(self.answer) / self.wanted

    def inputs(self) -> Inputs:
        """Returns what the next forward pass needs."""
        return self.sequence.inputs()

    def receive(self, out: Proposal, slot: int, positions: Ints) -> bool:
        """Takes a slot's predictions: the seed after the prompt, a draft, or the verification of a draft."""
        sequence = self.sequence
        if prefill := len(sequence.pending):
            self._confirm(out, slot, 1)
            sequence.commit(prefill)
            return True
        self.forwards += 1
        drafting, verified = sequence._masks, 1 + len(sequence.drafted)
        self.steps += drafting > 0
        if not sequence.verifies:
            sequence.drafted = out.token[slot, :drafting].astype(np.int64)
            self._show(1 + drafting)
            self.latest.confidence[:drafting], self.latest.entropy[:drafting] = (
                part[slot, :drafting] for part in (out.confidence, out.entropy)
            )
            return True
        self.commits += 1
        confirmed = self._confirm(out, slot, verified)
        sequence.commit(confirmed)
        whole = confirmed == verified  # otherwise the masks followed a token that is not in the answer
        most = min(drafting, sequence.room - sequence.past - 1) if whole else 0
        sequence.drafted = out.token[slot, verified : verified + most].astype(np.int64)
        return True

    def _confirm(self, out: Proposal, slot: int, verified: int) -> int:
        """Makes a block of the causal predictions, up to and including the first that differs from the draft.

        Returns their number. The last of them is the next seed.
        """
        tokens, confidence = out.token[slot, :verified].copy(), out.confidence[slot, :verified].copy()
        if self.sampler is not None:  # as in the causal mode: its index in the answer is position and step
            for place in range(verified):
                number = len(self.answer) + place
                sampled = self.sampler(
                    Proposal(*(part[slot, place : place + 1] for part in out.parts())), number, number
                )
                tokens[place], confidence[place] = sampled.token[0], sampled.confidence[0]
        same = tokens[:-1] == self.sequence.drafted[: verified - 1]
        confirmed = verified if same.all() else int(same.argmin()) + 1
        self.sequence.seed = int(tokens[confirmed - 1])
        self._show(confirmed)
        self.latest = Proposal(tokens[:confirmed], confidence[:confirmed], out.entropy[slot, :confirmed].copy())
        self.confirmed = True
        return confirmed

    def _show(self, size: int) -> None:
        """Makes a canvas of `size` masks, without predictions."""
        self.canvas, self.open = np.full(size, self.contract.mask_id), np.ones(size, np.bool_)
        self.latest, self.confirmed = make_empty_proposal(size, 0), False

    def draw(self) -> None:
        """Does nothing: confirmed tokens were sampled in `receive`, and drafts are top-1 tokens."""

    def accept(self, choice: Bools) -> Bools:
        """Returns all positions of a confirmed block, none of a draft. bool [block]"""
        return self.open & self.confirmed

    def finalize(self, accepted: Bools) -> None:
        """Appends a block of confirmed tokens to the answer; ends the answer if it is time.

        accepted: all positions of a confirmed block, none of a draft. bool [block]
        """
        np.copyto(self.canvas, self.latest.token, where=accepted)
        self.open ^= accepted
        if not self.confirmed:
            return
        fresh = self.canvas.tolist()
        if not self._ended(fresh):
            self.answer += fresh
            self.blocks += 1
