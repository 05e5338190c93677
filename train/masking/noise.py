"""The noise of masked diffusion: an answer laid on its canvas, and which of its positions are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.contract import Contract
from runtime.decoding.block_layout import block_bounds, committed_prompt, whole_blocks
from train import distributed
from train.data.batches import Example, pad

EARLY = 2  # leans drawn ratios towards wholly masked blocks, where a few-step student decides most


@dataclass(frozen=True, slots=True)
class AnswerBlocks:
    """Prompts with their answers filled up to whole blocks.

    ids int64 [batch, width]; start, answer_end, length int64 [batch]: where the answer begins, where it ends (end token
    included), and where the canvas ends.
    """

    ids: Tensor
    start: Tensor
    answer_end: Tensor
    length: Tensor

    def offsets(self) -> Tensor:
        """Each position's place on its canvas, negative in the prompt. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]) - self.start[:, None]

    def everywhere(self) -> Tensor:
        """All positions. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]).expand(self.ids.shape)

    def inside(self) -> Tensor:
        """True on the canvas. bool [batch, width]."""
        return (self.offsets() >= 0) & (torch.arange(self.ids.shape[1]) < self.length[:, None])

    def mine(self) -> AnswerBlocks:
        """This process's rows, of the same width; see `parallel.mine`."""
        return AnswerBlocks(*(distributed.mine(part) for part in (self.ids, self.start, self.answer_end, self.length)))

    def rows(self, chosen: Tensor) -> AnswerBlocks:
        """The chosen rows alone, of the same width. chosen bool [batch]."""
        return AnswerBlocks(self.ids[chosen], self.start[chosen], self.answer_end[chosen], self.length[chosen])

    def blocks(self, contract: Contract, width: int = 0) -> Tensor:
        """The positions of each answer's blocks, int64 [batch, noisy], `width` of them at least.

        From where the first begins, which is before the answer if the prompt's last tokens share it (`absolute`), as
        many as the longest has in whole blocks.
        """
        starts = self.start.tolist()
        first = [committed_prompt(contract, start) for start in starts]
        reach = [whole_blocks(contract, s, n - s) for s, n in zip(starts, self.length.tolist(), strict=True)]
        widest = max(width, *(end - begin for begin, end in zip(first, reach, strict=True)))
        return torch.tensor(first)[:, None] + torch.arange(widest)


@dataclass(frozen=True, slots=True)
class Units:
    """What masks are sampled for, blocks or whole canvases: each position's unit, place in it and unit's size.

    int64 [batch, n], or what broadcasts to it, each.
    """

    number: Tensor
    place: Tensor
    size: Tensor


def begins_at(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Tensor:
    """Where the block of each position begins, as decoding has it. positions, and what is returned, int64 [batch, n]"""
    return _bounds(canvas, contract, positions)[0].gather(1, positions)


def blocks_at(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Units:
    """The blocks of positions int64 [batch, n], as decoding has them, without the prompt's part of the first.

    What lies in the prompt counts as the first one's first place.
    """
    begins, ends = _bounds(canvas, contract, positions)
    inside = torch.maximum(torch.arange(begins.shape[1]), canvas.start[:, None])
    begins, ends = torch.maximum(begins.gather(1, inside), canvas.start[:, None]), ends.gather(1, inside)
    number = (begins.diff(dim=1, prepend=begins[:, :1]) != 0).cumsum(1)
    return Units(*(part.gather(1, positions) for part in (number, inside - begins, ends - begins)))


def _bounds(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Where the block of every position up to the last of these begins and ends; int64 [batch, reach] each."""
    reach = max(int(positions.max()), int(canvas.start.max())) + 1
    bounds = [block_bounds(contract, start, reach - start) for start in canvas.start.tolist()]
    begins, ends = (torch.from_numpy(np.stack(part)) for part in zip(*bounds, strict=True))
    return begins, ends


def whole_canvases(canvas: AnswerBlocks) -> Units:
    """Each canvas as one unit."""
    size, offsets = (canvas.length - canvas.start)[:, None], canvas.offsets()
    return Units(torch.div(offsets, size, rounding_mode="floor").clamp_min(0), offsets % size, size)


def sample_block(canvas: AnswerBlocks, blocks: Units, generator: torch.Generator) -> Tensor:
    """Samples uniformly one of the blocks that hold each answer; returns its number. int64 [batch, 1]"""
    count = blocks.number.gather(1, canvas.answer_end[:, None] - 1) + 1
    return (torch.rand(count.shape, generator=generator) * count).long()


def lay_out(examples: Sequence[Example], contract: Contract, canvas: int, generator: torch.Generator) -> AnswerBlocks:
    """Fills answers with pads to the blocks they need and, in every second batch, to `canvas` tokens at least.

    All of a batch alike, so that the batches without a whole canvas are short.
    """
    least = canvas if torch.rand(1, generator=generator).item() < 0.5 else 0
    filled = []
    for example in examples:
        size = max(whole_blocks(contract, len(example.prompt), len(example.answer)) - len(example.prompt), least)
        filled.append(Example(example.prompt, example.answer + (contract.pad_id,) * (size - len(example.answer))))
    batch = pad(filled, contract.pad_id)
    end = batch.start + torch.tensor([len(example.answer) for example in examples])
    return AnswerBlocks(batch.ids, batch.start, end, batch.length)


def uniform_mask(canvas: AnswerBlocks, generator: torch.Generator) -> Tensor:
    """A ratio drawn for each row, then each of its positions masked with that probability (LLaDA, arXiv 2502.09992)."""
    rows, width = canvas.ids.shape
    ratio = torch.rand((rows, 1), generator=generator)
    return (torch.rand((rows, width), generator=generator) < ratio) & canvas.inside()


def block_mask(canvas: AnswerBlocks, contract: Contract, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What block-wise decoding meets: blocks before a drawn one clean, it masked at a drawn ratio, later ones whole.

    Returns what is masked and what of it lies in the drawn block, bool [batch, width] each: a step decides on that
    block alone. In every second row the ratio is of single positions, in the others of the block's end: from left to
    right is the order in which most answers settle.
    """
    rows, width = canvas.ids.shape
    blocks = blocks_at(canvas, contract, canvas.everywhere())
    current = sample_block(canvas, blocks, generator)
    ratio = torch.rand((rows, 1), generator=generator)
    scattered = torch.rand((rows, width), generator=generator) < ratio
    drawn = torch.where(torch.rand((rows, 1), generator=generator) < 0.5, scattered, tail(blocks, ratio))
    decided = (blocks.number == current) & drawn & canvas.inside()
    return decided | ((blocks.number > current) & canvas.inside()), decided


def ends(canvas: AnswerBlocks, units: Units, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the units of each canvas, and of those the end that is masked: what decoding from left to right meets.

    Returns the drawn units and their masked ends, bool [batch, width] each. An end is 1 - u ** EARLY of its unit, u
    uniform.
    """
    here = units.number
    shape = (len(here), int(here.max()) + 1)  # [batch, units]
    drawn = (torch.rand(shape, generator=generator) < share).gather(1, here) & canvas.inside()
    ratio = (1 - torch.rand(shape, generator=generator) ** EARLY).gather(1, here)
    return drawn, drawn & tail(units, ratio)


def spread(rows: int, share: float) -> Tensor:
    """That share of the rows, as evenly among them as can be. bool [rows]."""
    count = torch.floor(torch.arange(rows + 1) * share)
    return count[1:] > count[:-1]


def tail(units: Units, ratio: Tensor) -> Tensor:
    """True on the last `ratio` of each unit, rounded up to whole positions. bool, shaped as they are."""
    return units.place >= ((1 - ratio) * units.size).floor()


def weights(canvas: AnswerBlocks, masked: Tensor, padding: float) -> Tensor:
    """Loss weights fp32 [batch, width]: 1 on masked answer tokens, `padding` on masked filler, easily guessed."""
    filler = torch.arange(canvas.ids.shape[1]) >= canvas.answer_end[:, None]
    return masked.float() * torch.where(filler, padding, 1.0)


def predicting(masked: Tensor, shift: bool) -> Tensor:
    """The rows that predict the masked positions: themselves, or with `shift` the row before each. bool [batch, width]

    Selecting with it keeps the order of selecting with `masked`. Position 0 is never masked: it belongs to the prompt.
    """
    return torch.cat((masked[:, 1:], torch.zeros_like(masked[:, :1])), dim=1) if shift else masked
