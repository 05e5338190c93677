"""Training on all blocks in one forward is the same as on each block alone, and the noise stays on the canvas."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from torch import Tensor

from runtime.contract import Contract
from runtime.decoding.block_layout import block_ends
from train.data.batches import Example
from train.masking import all_blocks, noise
from train.masking.noise import AnswerBlocks

SIZES = ((5, 7), (9, 14), (3, 2), (1, 4))  # tokens of prompt and answer


def laid_out(seed: int, generator: torch.Generator) -> AnswerBlocks:
    """Prompts and answers of random tokens, most of them not whole blocks."""
    rng = random.Random(seed)
    drawn = [(tiny.prompt(rng, start), tiny.prompt(rng, answer)) for start, answer in SIZES]
    examples = [Example(tuple(prompt.tolist()), tuple(answer.tolist())) for prompt, answer in drawn]
    return noise.lay_out(examples, tiny.contract(), 0, generator)


def copies_of(laid: AnswerBlocks, contract: Contract, generator: torch.Generator) -> all_blocks.Copies:
    return all_blocks.copies(laid, contract, all_blocks.noise(laid, contract, 2, generator))


@pytest.mark.parametrize("alignment", ["prompt", "end"])
@pytest.mark.parametrize("shift", [False, True])
def test_one_doubled_forward_equals_a_forward_for_each_block(shift: bool, alignment: str) -> None:
    seed = tiny.fresh_seed()
    contract, generator = tiny.contract(shift=shift, alignment=alignment), torch.Generator().manual_seed(seed)
    model, laid = tiny.model(seed), laid_out(seed, generator)
    both = copies_of(laid, contract, generator)
    with torch.no_grad():
        hidden = model(both.ids, mask=both.mask, positions=both.positions)
        hidden = hidden.gather(1, both.rows[..., None].expand(-1, -1, hidden.shape[-1]))  # [batch, noisy, width]
        for row, (start, end) in enumerate(zip(laid.start.tolist(), laid.length.tolist(), strict=True)):
            noisy = both.ids[row, laid.ids.shape[1] :]
            for first in range(0, end - start, tiny.BLOCK):
                place = slice(first, first + tiny.BLOCK)
                ids = torch.cat((laid.ids[row, : start + first], noisy[place]))
                alone = model(ids[None], torch.from_numpy(block_ends(contract, start, first + tiny.BLOCK))[None])[0]
                if shift:  # position 0 is the business of the last committed row, in a forward without this block
                    before = laid.ids[row, : start + first]
                    last = model(before[None], torch.from_numpy(block_ends(contract, start, first))[None])[0, -1:]
                    alone = torch.cat((last, alone[-tiny.BLOCK : -1]))
                assert torch.allclose(alone[-tiny.BLOCK :], hidden[row, place], atol=1e-4), f"seed {seed}"


def test_what_is_masked_is_a_mask_and_the_rest_is_the_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    laid = laid_out(0, generator)
    both, clean = copies_of(laid, tiny.contract(), generator), laid.ids.shape[1]
    assert torch.equal(both.ids[:, :clean], laid.ids)
    for row, (start, end) in enumerate(zip(laid.start, laid.length, strict=True)):
        size = int(end - start)
        noisy, masked = both.ids[row, clean : clean + size], both.masked[row, :size]
        assert (noisy[masked] == tiny.MASK).all() and torch.equal(noisy[~masked], laid.ids[row, start:end][~masked])
        assert both.positions[row, clean : clean + size].tolist() == list(range(int(start), int(end)))


def noises(block: int, turns: int = 40) -> tuple[AnswerBlocks, Tensor]:
    """A canvas, and what was masked of it in many draws, bool [turns * batch, noisy]."""
    generator = torch.Generator().manual_seed(tiny.fresh_seed())
    laid, contract = laid_out(0, generator), tiny.contract(block=block, canvas=12 * block)
    return laid, torch.cat([all_blocks.noise(laid, contract, 2, generator) for _ in range(turns)])


def test_noise_stays_on_the_canvas_and_covers_it() -> None:
    laid, masked = noises(tiny.BLOCK)
    size = (laid.length - laid.start).repeat(len(masked) // len(laid.ids))
    inside = torch.arange(masked.shape[1]) < size[:, None]
    assert not (masked & ~inside).any()
    assert masked.any(0).all() and (~masked & inside).any(0).all()


def test_blocks_are_masked_independently_of_each_other_and_whole_most_often() -> None:
    _, masked = noises(tiny.BLOCK, 100)
    longest = masked[1::4].view(100, -1, tiny.BLOCK).sum(-1)  # the second row has four blocks; [turns, blocks]
    counts = torch.bincount(longest.flatten(), minlength=tiny.BLOCK + 1)
    assert counts[tiny.BLOCK] == counts.max() and (counts[1:] > 0).all()
    assert len(longest.unique(dim=0)) > 30  # one ratio a row would give fewer patterns of counts


@pytest.mark.parametrize("shift", [False, True])
def test_rows_that_predict_keep_the_order_of_what_they_predict(shift: bool) -> None:
    masked = torch.tensor([[False, True, True, False, True], [False, False, False, True, False]])
    rows = noise.predicting(masked, shift)
    place = torch.arange(5).expand(2, 5)
    assert place[rows].tolist() == [at - shift for at in place[masked].tolist()] and rows.sum() == masked.sum()
