"""Training on all blocks in one forward is the same as on each block alone, and the noise stays on the canvas."""

from __future__ import annotations

import random
from unittest.mock import Mock

import pytest
import tiny
import torch
from block_alone import block_alone
from torch import Tensor

from runtime.contract import ALIGNMENTS, Contract
from train.data.batches import Example, Stream
from train.masking import all_blocks, noise
from train.masking.noise import AnswerBlocks
from train.methods.next_token import make_next_token_loss

SIZES = ((5, 7), (9, 14), (3, 2), (1, 4))  # tokens of prompt and answer
LENGTHS = tuple((prompt, 1 + 5 * prompt % 11) for prompt in range(1, 2 * tiny.BLOCK + 2))  # around blocks' borders


def laid_out(
    seed: int, generator: torch.Generator, sizes: tuple[tuple[int, int], ...] = SIZES, contract: Contract | None = None
) -> AnswerBlocks:
    """Prompts and answers of random tokens, most of them not whole blocks."""
    rng = random.Random(seed)
    pairs = [(tiny.prompt(rng, start), tiny.prompt(rng, answer)) for start, answer in sizes]
    examples = [Example(tuple(prompt.tolist()), tuple(answer.tolist())) for prompt, answer in pairs]
    return noise.lay_out(examples, contract or tiny.contract(), 0, generator)


def copies_of(laid: AnswerBlocks, contract: Contract, generator: torch.Generator) -> all_blocks.Copies:
    return all_blocks.make_copies(laid, contract, all_blocks.sample_noise(laid, contract, 2, generator))


@pytest.mark.parametrize(
    ("attention", "alignment", "shift"),
    [*(("block_causal", alignment, shift) for alignment in ALIGNMENTS for shift in (False, True)),
     ("causal_context", "prompt", True)],
)  # fmt: skip
def test_one_doubled_forward_equals_a_forward_for_each_block(attention: str, alignment: str, shift: bool) -> None:
    seed = tiny.choose_seed()
    contract = tiny.contract(attention=attention, shift=shift, alignment=alignment)
    generator = torch.Generator().manual_seed(seed)
    model, laid = tiny.model(seed), laid_out(seed, generator, LENGTHS, contract)
    both = copies_of(laid, contract, generator)
    with torch.no_grad():
        hidden = model(both.ids, mask=both.mask, positions=both.positions)
        hidden = hidden.gather(1, both.rows[..., None].expand(-1, -1, hidden.shape[-1]))  # [batch, noisy, width]
        for row, (start, end) in enumerate(zip(laid.start.tolist(), laid.length.tolist(), strict=True)):
            noisy = both.ids[row, laid.ids.shape[1] :]
            opening = start // tiny.BLOCK * tiny.BLOCK if alignment == "absolute" else start
            assert (end - opening) % tiny.BLOCK == 0 and end - start >= LENGTHS[row][1] > end - start - tiny.BLOCK
            for begin in range(opening, end, tiny.BLOCK):
                place = slice(begin - opening, begin - opening + tiny.BLOCK)
                ids = torch.cat((laid.ids[row, :begin], noisy[place]))
                alone, given = block_alone(model, contract, ids, start, begin), max(0, start - begin)
                assert torch.allclose(alone[given:], hidden[row, place][given:], atol=1e-4), f"seed {seed}"


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_prompts_part_of_a_shared_block_is_given_and_counts_in_no_unit(alignment: str) -> None:
    seed = tiny.choose_seed()
    contract, generator = tiny.contract(alignment=alignment), torch.Generator().manual_seed(seed)
    laid = laid_out(seed, generator, LENGTHS, contract)
    positions, met = laid.list_block_positions(contract), torch.zeros(laid.ids.shape, dtype=torch.bool)
    for _ in range(60):
        masked = all_blocks.sample_noise(laid, contract, 2, generator)
        for row, column in masked.nonzero().tolist():
            met[row, positions[row, column]] = True
    assert torch.equal(met, laid.find_inside()), f"seed {seed}"
    units = noise.find_blocks(laid, contract, laid.list_positions())
    for row, (start, end) in enumerate(zip(laid.start.tolist(), laid.length.tolist(), strict=True)):
        shared = start % tiny.BLOCK if alignment == "absolute" else 0
        for position in range(start, end):
            number, place = divmod(position - start + shared, tiny.BLOCK)
            expected = (number, place, tiny.BLOCK) if number else (0, place - shared, tiny.BLOCK - shared)
            assert tuple(int(part[row, position]) for part in (units.number, units.place, units.size)) == expected


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_processs_rows_with_the_masks_of_all_rows_are_predicted_as_among_all(alignment: str) -> None:
    seed = tiny.choose_seed()
    contract, generator = tiny.contract(alignment=alignment), torch.Generator().manual_seed(seed)
    laid, model = laid_out(seed, generator, contract=contract), tiny.model(seed)
    masked, short = all_blocks.sample_noise(laid, contract, 2, generator), laid.length - laid.start < 8
    assert short.any() and not short.all()
    with torch.no_grad():
        whole = all_blocks.run_predicting(model, all_blocks.make_copies(laid, contract, masked))
        alone = all_blocks.run_predicting(
            model, all_blocks.make_copies(laid.select_rows(short), contract, masked[short])
        )
    assert torch.allclose(whole[short][masked[short]], alone[masked[short]], atol=1e-4), f"seed {seed}"


def test_both_losses_of_one_forward_pass_are_those_of_two() -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    pairs = [(tiny.prompt(rng, start), tiny.prompt(rng, answer)) for start, answer in SIZES]
    stream = Mock(
        Stream, select_examples=lambda step: [Example(tuple(a.tolist()), tuple(b.tolist())) for a, b in pairs]
    )
    contract = tiny.contract(attention="causal_context", shift=True, alignment="prompt")
    blocks, kept, right = all_blocks.denoising_and_next_token_loss(
        model, model, stream, 0, contract, torch.Generator().manual_seed(seed)
    )
    alone = all_blocks.denoising_loss(model, model, stream, 0, contract, 1, torch.Generator().manual_seed(seed))
    next_token, figures = make_next_token_loss(model, model, stream, contract.pad_id)(0)
    assert torch.allclose(blocks, alone, atol=1e-5) and torch.allclose(kept, next_token, atol=1e-5), f"seed {seed}"
    assert len(right) == sum(answer for _, answer in SIZES) and right.float().mean() == figures["next"], f"seed {seed}"


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
    """A canvas, and what was masked of it in many samples, bool [turns * batch, noisy]."""
    generator = torch.Generator().manual_seed(tiny.choose_seed())
    laid, contract = laid_out(0, generator), tiny.contract(block=block, canvas=12 * block)
    return laid, torch.cat([all_blocks.sample_noise(laid, contract, 2, generator) for _ in range(turns)])


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
    rows = noise.find_predicting_rows(masked, shift)
    place = torch.arange(5).expand(2, 5)
    assert place[rows].tolist() == [at - shift for at in place[masked].tolist()] and rows.sum() == masked.sum()
