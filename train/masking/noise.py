"""The noise of masked diffusion: places an answer on its canvas, and samples which of its positions are masked."""

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

EARLY = 2  # favors ratios near wholly masked blocks, in which a few-step student predicts most


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
        """Returns each position's offset on its canvas, negative in the prompt. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]) - self.start[:, None]

    def everywhere(self) -> Tensor:
        """Returns all positions. int64 [batch, width]."""
        return torch.arange(self.ids.shape[1]).expand(self.ids.shape)

    def inside(self) -> Tensor:
        """Returns True on the canvas. bool [batch, width]."""
        return (self.offsets() >= 0) & (torch.arange(self.ids.shape[1]) < self.length[:, None])

    def mine(self) -> AnswerBlocks:
        """Returns this process's rows, of the same width; see `distributed.mine`."""
        return AnswerBlocks(*(distributed.mine(part) for part in (self.ids, self.start, self.answer_end, self.length)))

    def rows(self, chosen: Tensor) -> AnswerBlocks:
        """Returns only the chosen rows, of the same width. chosen bool [batch]."""
        return AnswerBlocks(self.ids[chosen], self.start[chosen], self.answer_end[chosen], self.length[chosen])

    def blocks(self, contract: Contract, width: int = 0) -> Tensor:
        """Returns the positions of each answer's blocks, int64 [batch, noisy], at least `width` of them.

        They begin with the first block, which is before the answer if the prompt's last tokens share it (`absolute`).
        There are as many as the longest answer has in whole blocks.
        """
        starts = self.start.tolist()
        first = [committed_prompt(contract, start) for start in starts]
        reach = [whole_blocks(contract, s, n - s) for s, n in zip(starts, self.length.tolist(), strict=True)]
        widest = max(width, *(end - begin for begin, end in zip(first, reach, strict=True)))
        return torch.tensor(first)[:, None] + torch.arange(widest)


@dataclass(frozen=True, slots=True)
class Units:
    """The units that masks are sampled for, blocks or whole canvases: each position's unit, place in it, unit's size.

    Each is int64 [batch, n], or broadcasts to it.
    """

    number: Tensor
    place: Tensor
    size: Tensor


def begins_at(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Tensor:
    """Returns where each position's block begins, as in decoding. positions and result int64 [batch, n]."""
    return _bounds(canvas, contract, positions)[0].gather(1, positions)


def blocks_at(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> Units:
    """Returns the blocks of positions int64 [batch, n], as in decoding, without the prompt's part of the first one.

    A position in the prompt counts as the first place of the first block.
    """
    begins, ends = _bounds(canvas, contract, positions)
    inside = torch.maximum(torch.arange(begins.shape[1]), canvas.start[:, None])
    begins, ends = torch.maximum(begins.gather(1, inside), canvas.start[:, None]), ends.gather(1, inside)
    number = (begins.diff(dim=1, prepend=begins[:, :1]) != 0).cumsum(1)
    return Units(*(part.gather(1, positions) for part in (number, inside - begins, ends - begins)))


def _bounds(canvas: AnswerBlocks, contract: Contract, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns begin and end of the block of every position up to the last of these; int64 [batch, reach] each."""
    reach = max(int(positions.max()), int(canvas.start.max())) + 1
    bounds = [block_bounds(contract, start, reach - start) for start in canvas.start.tolist()]
    begins, ends = (torch.from_numpy(np.stack(part)) for part in zip(*bounds, strict=True))
    return begins, ends


def whole_canvases(canvas: AnswerBlocks) -> Units:
    """Returns each canvas as one unit."""
    size, offsets = (canvas.length - canvas.start)[:, None], canvas.offsets()
    return Units(torch.div(offsets, size, rounding_mode="floor").clamp_min(0), offsets % size, size)


def sample_block(canvas: AnswerBlocks, blocks: Units, generator: torch.Generator) -> Tensor:
    """Samples uniformly one of the blocks that hold each answer; returns its number. int64 [batch, 1]"""
    count = blocks.number.gather(1, canvas.answer_end[:, None] - 1) + 1
    return (torch.rand(count.shape, generator=generator) * count).long()


def lay_out(examples: Sequence[Example], contract: Contract, canvas: int, generator: torch.Generator) -> AnswerBlocks:
    """Fills answers with pads to whole blocks and, in about half of the batches, to at least `canvas` tokens.

    All answers of a batch are filled alike, so that batches without a whole canvas are short.
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
    """Samples a ratio per row, then masks each position with that probability (LLaDA, arXiv 2502.09992)."""
    rows, width = canvas.ids.shape
    ratio = torch.rand((rows, 1), generator=generator)
    return (torch.rand((rows, width), generator=generator) < ratio) & canvas.inside()


def block_mask(canvas: AnswerBlocks, contract: Contract, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples what block-wise decoding meets: blocks before a sampled one clean, part of it masked, later ones masked.

    Returns what is masked, and what of it is in the sampled block, bool [batch, width] each: a step predicts that block
    alone. In about half of the rows the sampled ratio is of single positions, in the others of the block's end: most
    answers are unmasked from left to right.
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
    """Samples a share of the units of each canvas and masks their ends, as decoding from left to right meets them.

    Returns the sampled units and their masked ends, bool [batch, width] each. An end is 1 - u ** EARLY of its unit, u
    uniform.
    """
    here = units.number
    shape = (len(here), int(here.max()) + 1)  # [batch, units]
    drawn = (torch.rand(shape, generator=generator) < share).gather(1, here) & canvas.inside()
    ratio = (1 - torch.rand(shape, generator=generator) ** EARLY).gather(1, here)
    return drawn, drawn & tail(units, ratio)


def spread(rows: int, share: float) -> Tensor:
    """Selects that share of the rows, spread as evenly as possible. bool [rows]."""
    count = torch.floor(torch.arange(rows + 1) * share)
    return count[1:] > count[:-1]


def tail(units: Units, ratio: Tensor) -> Tensor:
    """Returns True on the last `ratio` of each unit, rounded up to whole positions. bool, shaped as the units."""
    return units.place >= ((1 - ratio) * units.size).floor()


def weights(canvas: AnswerBlocks, masked: Tensor, padding: float) -> Tensor:
    """Returns loss weights fp32 [batch, width]: 1 on masked answer tokens, `padding` on masked, easy filler."""
    filler = torch.arange(canvas.ids.shape[1]) >= canvas.answer_end[:, None]
    return masked.float() * torch.where(filler, padding, 1.0)


def predicting(masked: Tensor, shift: bool) -> Tensor:
    """Returns the rows that predict the masked positions: themselves, or with `shift` the row before each.

    bool [batch, width]. Selecting with it keeps the order of selecting with `masked`. Position 0 is never masked: it
    belongs to the prompt.
    """
    return torch.cat((masked[:, 1:], torch.zeros_like(masked[:, :1])), dim=1) if shift else masked
