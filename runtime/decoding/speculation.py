"""Implements causal self-speculation: a model drafts a block and keeps what its own causal predictions confirm.

The answer is the model's causal (autoregressive) one, token for token in fp32, in fewer forward passes. There are two
ways to draft. Either all positions of a block are drafted at once, after the seed: one forward pass drafts, another
verifies (Nemotron-Labs-Diffusion's linear_spec_generate). Or masks follow the tokens that are verified: one forward
pass does both (I-DLM, and `causal_context` with shift, if it is fused). In `causal_context` masks see each other, in
`causal` only what comes before them. Tokens that were not confirmed are not counted as committed, so that later keys
and values overwrite theirs.

If one forward pass does both, a draft ends before the first token of low confidence: masks that follow a wrong token
are wasted, and one forward pass with them. The causal prediction after the last drafted token replaces the token that
was left out. A draft also ends with its first end token, which no masks follow, and few masks follow a short draft, for
text that is hard to draft seldom becomes easy at once: on a CPU every mask costs time. The prompt's forward pass drafts
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

from ..backend import Bools, Floats, Ints, Proposal
from ..contract import Contract
from .request_state import Progress, make_empty_proposal
from .sampling import Sampler
from .sequence import NOTHING, Inputs

CONFIDENT = 0.6  # minimum confidence of a drafted token; of 0 to 0.9 about the fewest forward passes on math and code
# Minimum masks per draft, and masks added to the last draft's length: as many forward passes as with a whole block.
FEWEST, MORE = 7, 2


@final
class Draft:
    """Feeds a model a prompt's tokens, or the seed (the one token known but not committed) and a draft.

    past: how many tokens are in the KV cache. room: the maximum of positions. drafted: tokens that the model predicted
    after the seed, still to be verified. together: whether masks follow them, unless they end the answer; their
    predictions are the next draft if all of this one is confirmed. Otherwise each draft has its own forward pass.
    """

    __slots__ = (
        "_block", "_causal", "_eos_ids", "_mask", "_most", "_rows_before", "_together",
        "drafted", "past", "pending", "room", "seed",
    )  # fmt: skip

    def __init__(self, contract: Contract, prompt: Ints, past: int, room: int, together: bool) -> None:
        self._block, self._mask, self._rows_before = contract.block, contract.mask_id, int(contract.shift)
        self._together, self._causal, self._eos_ids = together, contract.attention == "causal", contract.eos_ids
        self.past, self.pending, self.room, self.seed = past, prompt[past:], room, -1
        self.drafted, self._most = NOTHING, contract.block - 1

    @property
    def _known(self) -> int:
        """Returns how many tokens come before the masks: the prompt's, or the seed and the draft."""
        return len(self.pending) or 1 + len(self.drafted)

    @property
    def masks(self) -> int:
        """Returns how many tokens the next forward pass drafts: at most a block with the seed, if there is room."""
        if not self._together and (len(self.pending) or len(self.drafted)):
            return 0
        if self._together and len(self.drafted) and self.drafted[-1] in self._eos_ids:
            return 0
        return max(0, min(self._most, self.room - self.past - self._known))

    @property
    def verifies(self) -> bool:
        """Whether the next forward pass confirms tokens, the first after a prompt too; otherwise it only drafts."""
        return self._together or self._known > 1 or not self.masks

    @property
    def width(self) -> int:
        """Tokens of the next forward pass."""
        return self._known + self.masks

    def make_inputs(self) -> Inputs:
        """Returns the prompt, whose last row predicts the seed, or seed and draft; then masks; and the logits rows."""
        past, known, masks = self.past, self._known, self.masks
        before = self.pending if len(self.pending) else np.concatenate(([self.seed], self.drafted))
        ids, places = np.concatenate((before, np.full(masks, self._mask))), np.arange(known + masks)
        if self.verifies:
            visible = past + 1 + places
            if not self._causal:
                visible[known:] = past + len(ids)
            rows = places[max(0, len(self.pending) - 1) :]
            return Inputs(ids, visible, past, rows, np.arange(len(rows) - masks))
        rows = places[1:] - self._rows_before
        return Inputs(ids, np.full(len(ids), past + len(ids)), past, rows, rows - 1 + self._rows_before)

    def draft(self, tokens: Ints, confidence: Floats) -> None:
        """Takes predictions at masks as the next draft: if masks follow it, as far as it is likely to be confirmed."""
        if self._together and len(tokens):
            low = np.flatnonzero(confidence < CONFIDENT)
            tokens = tokens[: low[0] if len(low) else None]
            ends = np.flatnonzero(np.isin(tokens, self._eos_ids))
            tokens = tokens[: ends[0] + 1 if len(ends) else None]
            self._most = min(self._block - 1, max(FEWEST, len(tokens) + MORE))
        self.drafted = tokens.astype(np.int64)

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

    def make_inputs(self) -> Inputs:
        """Returns what the next forward pass needs."""
        return self.sequence.make_inputs()

    def receive(self, out: Proposal, slot: int, positions: Ints) -> bool:
        """Takes a slot's predictions: the seed after the prompt, a draft, or the verification of a draft."""
        sequence = self.sequence
        prefill, drafting = len(sequence.pending), sequence.masks
        self.forwards += drafting > 0 or not prefill
        self.steps += drafting > 0
        if not sequence.verifies:
            sequence.draft(out.token[slot, :drafting], out.confidence[slot, :drafting])
            self._show(1 + drafting)
            self.latest.confidence[:drafting], self.latest.entropy[:drafting] = (
                part[slot, :drafting] for part in (out.confidence, out.entropy)
            )
            return True
        self.commits += not prefill
        verified = 1 if prefill else 1 + len(sequence.drafted)
        confirmed = self._confirm(out, slot, verified)
        sequence.commit(prefill or confirmed)
        whole = confirmed == verified  # otherwise the masks followed a token that is not in the answer
        most = min(drafting, sequence.room - sequence.past - 1) if whole else 0
        after = slice(verified, verified + most)
        sequence.draft(out.token[slot, after], out.confidence[slot, after])
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
                    Proposal(*(part[slot, place : place + 1] for part in out.list_arrays())), number, number
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
        if not self._check_end(fresh):
            self.answer += fresh
            self.blocks += 1
