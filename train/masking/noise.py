"""Places answers on canvases and samples which of their positions are masked: the noise of masked diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.contract import Contract
from runtime.decoding.block_layout import compute_block_bounds, count_committed, round_up_to_blocks
from train import distributed
from train.data.batches import Example, pad

EARLY = 2  # exponent that favors ratios near 1, as a few-step student predicts most tokens in wholly masked blocks


@dataclass(frozen=True, slots=True)
class AnswerBlocks:
    """Prompts with their answers, which are padded to whole blocks.

    ids int64 [batch, width]; start, answer_end, length int64 [batch]: where the answer begins, where it ends (end token
    included), and where the canvas ends.
    """

    ids: Tensor
    start: Tensor
    answer_end: Tensor
    length: Tensor

    def compute_offsets(self) -> Tensor:
        """Returns each position's offset on its canvas, negative in the prompt. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]) - self.start[:, None]

    def list_positions(self) -> Tensor:
        """Returns all positions. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]).expand(self.ids.shape)

    def find_inside(self) -> Tensor:
        """Returns which positions are on the canvas. bool [batch, width]."""
        return (self.compute_offsets() >= 0) & (torch.arange(self.ids.shape[1]) < self.length[:, None])

    def take_own_rows(self) -> AnswerBlocks:
        """Returns this process's rows, of the same width; see `distributed.take_own_rows`."""
        return AnswerBlocks(
            *(distributed.take_own_rows(part) for part in (self.ids, self.start, self.answer_end, self.length))
        )

    def select_rows(self, chosen: Tensor) -> AnswerBlocks:
        """Returns only the chosen rows, of the same width. chosen bool [batch]."""
        return AnswerBlocks(self.ids[chosen], self.start[chosen], self.answer_end[chosen], self.length[chosen])

    def list_block_positions(self, contract: Contract, width: int = 0) -> Tensor:
        """Returns the positions of each answer's blocks, int64 [batch, noisy].

        They begin where the first block begins: before the answer, if the prompt's last tokens share the block
        (`absolute`). noisy: as many as the longest answer's whole blocks have, but at least `width`.
        """
        starts = self.start.tolist()
        first = [count_committed(contract, start) for start in starts]
        reach = [round_up_to_blocks(contract, s, n - s) for s, n in zip(starts, self.length.tolist(), strict=True)]
        widest = max(width, *(end - begin for begin, end in zip(first, reach, strict=True)))
        return torch.tensor(first)[:, None] + torch.arange(widest)


@dataclass(frozen=True, slots=True)
class Units:
    """The units for which masks are sampled, which are blocks or whole canvases.

    number, place, size: each position's unit, its place in the unit, and the unit's size; int64 [batch, n] or
    broadcast to that.
    """

    number: Tensor
    place: Tensor
    size: Tensor


def find_begins(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Tensor:
    """Returns where each position's block begins, as in decoding. positions and result int64 [batch, n]."""
    return _find_bounds(canvas, contract, positions)[0].gather(1, positions)


def find_blocks(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Units:
    """Returns the blocks of positions int64 [batch, n], as in decoding, but with the first one begun at the answer.

    A position in the prompt counts as the first place of the first block.
    """
    begins, ends = _find_bounds(canvas, contract, positions)
    inside = torch.maximum(torch.arange(begins.shape[1]), canvas.start[:, None])
    begins, ends = torch.maximum(begins.gather(1, inside), canvas.start[:, None]), ends.gather(1, inside)
    number = (begins.diff(dim=1, prepend=begins[:, :1]) != 0).cumsum(1)
    return Units(*(part.gather(1, positions) for part in (number, inside - begins, ends - begins)))


def _find_bounds(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where the block of each position below `reach` begins and ends; int64 [batch, reach] each."""
    reach = max(int(positions.max()), int(canvas.start.max())) + 1
    bounds = [compute_block_bounds(contract, start, reach - start) for start in canvas.start.tolist()]
    begins, ends = (torch.from_numpy(np.stack(part)) for part in zip(*bounds, strict=True))
    return begins, ends


def make_whole_canvases(canvas: AnswerBlocks) -> Units:
    """Returns each canvas as one unit."""
    size, offsets = (canvas.length - canvas.start)[:, None], canvas.compute_offsets()
    return Units(torch.div(offsets, size, rounding_mode="floor").clamp_min(0), offsets % size, size)


def sample_block(canvas: AnswerBlocks, blocks: Units, generator: torch.Generator) -> Tensor:
    """Samples, for each answer, one of its blocks uniformly; returns the block's number. int64 [batch, 1]"""
    count = blocks.number.gather(1, canvas.answer_end[:, None] - 1) + 1
    return (torch.rand(count.shape, generator=generator) * count).long()


def lay_out(examples: Sequence[Example], contract: Contract, canvas: int, generator: torch.Generator) -> AnswerBlocks:
    """Pads answers to whole blocks and, in about half of the batches, to at least `canvas` tokens.

    The choice is per batch and not per answer, so that the other half of the batches stay short.
    """
    least = canvas if torch.rand(1, generator=generator).item() < 0.5 else 0
    filled = []
    for example in examples:
        size = max(round_up_to_blocks(contract, len(example.prompt), len(example.answer)) - len(example.prompt), least)
        filled.append(Example(example.prompt, example.answer + (contract.pad_id,) * (size - len(example.answer))))
    batch = pad(filled, contract.pad_id)
    end = batch.start + torch.tensor([len(example.answer) for example in examples])
    return AnswerBlocks(batch.ids, batch.start, end, batch.length)


def sample_uniform_mask(canvas: AnswerBlocks, generator: torch.Generator) -> Tensor:
    """Samples a ratio per row, then masks each position with that probability (LLaDA, arXiv 2502.09992)."""
    rows, width = canvas.ids.shape
    ratio = torch.rand((rows, 1), generator=generator)
    return (torch.rand((rows, width), generator=generator) < ratio) & canvas.find_inside()


def sample_block_mask(canvas: AnswerBlocks, contract: Contract, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples a state of block-wise decoding: part of one sampled block masked, earlier ones clean, later ones masked.

    Returns which positions are masked, and which of these are in the sampled block, the only one that a step predicts;
    bool [batch, width] each. In about half of the rows the block's masked positions are scattered, in the others they
    are at its end, because most answers are unmasked from left to right.
    """
    rows, width = canvas.ids.shape
    blocks = find_blocks(canvas, contract, canvas.list_positions())
    current = sample_block(canvas, blocks, generator)
    ratio = torch.rand((rows, 1), generator=generator)
    scattered = torch.rand((rows, width), generator=generator) < ratio
    sampled = torch.where(torch.rand((rows, 1), generator=generator) < 0.5, scattered, mark_tail(blocks, ratio))
    decided = (blocks.number == current) & sampled & canvas.find_inside()
    return decided | ((blocks.number > current) & canvas.find_inside()), decided


def sample_ends(canvas: AnswerBlocks, units: Units, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples a share of the units of each canvas and masks their ends, as in decoding from left to right.

    Returns the positions of the sampled units and of their masked ends, bool [batch, width] each. An end has the share
    1 - u ** EARLY of its unit, u uniform.
    """
    here = units.number
    shape = (len(here), int(here.max()) + 1)  # [batch, units]
    sampled = (torch.rand(shape, generator=generator) < share).gather(1, here) & canvas.find_inside()
    ratio = (1 - torch.rand(shape, generator=generator) ** EARLY).gather(1, here)
    return sampled, sampled & mark_tail(units, ratio)


def spread(rows: int, share: float) -> Tensor:
    """Selects a share of the rows, spread as evenly as possible. bool [rows]."""
    count = torch.floor(torch.arange(rows + 1) * share)
    return count[1:] > count[:-1]


def mark_tail(units: Units, ratio: Tensor) -> Tensor:
    """Returns which positions are in the last `ratio` of their unit, rounded up. bool, shaped as the units."""
    return units.place >= ((1 - ratio) * units.size).floor()


def make_weights(canvas: AnswerBlocks, masked: Tensor, padding: float) -> Tensor:
    """Returns loss weights fp32 [batch, width]: 1 on masked answer tokens, `padding` on masked filler."""
    filler = torch.arange(canvas.ids.shape[1]) >= canvas.answer_end[:, None]
    return masked.float() * torch.where(filler, padding, 1.0)


def find_predicting_rows(masked: Tensor, shift: bool) -> Tensor:
    """Returns the rows that predict the masked positions: the same positions, or with `shift` the one before each.

    bool [batch, width]. It selects rows in the order in which `masked` selects positions. Position 0 is never masked,
    as it belongs to the prompt.
    """
    return torch.cat((masked[:, 1:], torch.zeros_like(masked[:, :1])), dim=1) if shift else masked
