"""Trains all blocks of an answer in one forward pass: a clean copy of the sequence next to a noisy copy of the canvas.

Each noisy block sees the clean tokens before it, and itself, as in decoding. Source: the vectorized training of BD3LM
(Arriola et al. 2025, arXiv 2503.09573).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.contract import Contract
from runtime.decoding.block_layout import compute_committed_ends
from train import distributed, losses
from train.data.batches import Stream
from train.device import select, send
from train.transformer.network import Transformer

from . import noise
from .noise import AnswerBlocks

FILLER = 0.05  # weight of the easily guessed tokens after an answer's end


@dataclass(frozen=True, slots=True)
class Copies:
    """Inputs of one forward pass over width = clean + noisy positions, and where its predictions are.

    ids, positions int64 [batch, width]; mask fp32 [batch, 1, width, width], additive; masked bool [batch, noisy]: which
    of the positions in `AnswerBlocks.list_block_positions` are to be predicted; rows int64 [batch, noisy]: the index in
    [0, width) of the row that predicts each noisy position.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    masked: Tensor
    rows: Tensor


def denoising_loss(
    model: Transformer,
    run: torch.nn.Module,
    stream: Stream,
    step: int,
    contract: Contract,
    early: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns the masked-denoising cross-entropy of ground truth under the block-causal mask, all blocks at once.

    early: see `sample_noise`.
    """
    laid, both = _sample_copies(stream, step, contract, early, generator)
    return _denoising(model, run_predicting(run, both), both, laid, contract)


def denoising_and_next_token_loss(
    model: Transformer, run: torch.nn.Module, stream: Stream, step: int, contract: Contract, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `denoising_loss`, with all ratios equally frequent, and `make_next_token_loss` of one forward pass.

    Also returns which next tokens are right, bool [n]. For models whose committed tokens are causal: the clean copy is
    then what the next-token loss runs.
    """
    laid, both = _sample_copies(stream, step, contract, 1, generator)
    hidden = run(both.ids, mask=both.mask, positions=both.positions)
    blocks = _denoising(model, _gather_predicting(hidden, both), both, laid, contract)
    places = torch.arange(laid.ids.shape[1])
    wanted = (places >= laid.start[:, None] - 1) & (places < laid.answer_end[:, None] - 1)  # [batch, clean]
    logits = model.logits(select(hidden[:, : laid.ids.shape[1]], wanted)).float()
    target = send(laid.ids.roll(-1, 1)[wanted], logits.device)
    following = distributed.take_part(F.cross_entropy(logits, target), len(target))
    return blocks, following, logits.argmax(-1) == target


def _sample_copies(
    stream: Stream, step: int, contract: Contract, early: float, generator: torch.Generator
) -> tuple[AnswerBlocks, Copies]:
    """Returns this process's rows of a step's batch, and their clean and noisy copies."""
    laid = noise.lay_out(stream.select_examples(step), contract, 0, generator)
    masked = sample_noise(laid, contract, early, generator)
    laid, masked = laid.take_own_rows(), distributed.take_own_rows(masked)
    return laid, make_copies(laid, contract, masked)


def _denoising(model: Transformer, predicting: Tensor, both: Copies, laid: AnswerBlocks, contract: Contract) -> Tensor:
    """Returns the cross-entropy at the masked positions. predicting [batch, noisy, hidden]: see `run_predicting`."""
    hidden = select(predicting, both.masked)  # [n, hidden]
    positions = both.positions[:, laid.ids.shape[1] :]  # [batch, noisy]
    target = laid.ids.gather(1, positions.clamp_max(laid.ids.shape[1] - 1))[both.masked]
    weight = torch.where(positions < laid.answer_end[:, None], 1.0, FILLER)[both.masked]
    return losses.denoising(losses.log_probs(model.logits(hidden), contract.mask_id), target, weight)


def sample_noise(canvas: AnswerBlocks, contract: Contract, early: float, generator: torch.Generator) -> Tensor:
    """Samples which positions are masked, bool [batch, noisy]: in each block a ratio 1 - u ** early, u uniform.

    If early is 1, all ratios are equally frequent, as in decoding one token per step; if it is above 1, wholly masked
    blocks are more frequent, as in decoding in few steps. In about half of the rows the masked positions are scattered,
    in the others they are at the block's end, as in `noise.sample_block_mask`.
    """
    positions = canvas.list_block_positions(contract)
    rows, blocks = len(positions), noise.find_blocks(canvas, contract, positions)
    ratios = 1 - torch.rand((rows, int(blocks.number.max()) + 1), generator=generator) ** early  # [batch, blocks]
    ratio = ratios.gather(1, blocks.number)
    scattered = torch.rand(positions.shape, generator=generator) < ratio
    behind = noise.mark_tail(blocks, ratio)
    chosen = torch.where(torch.rand((rows, 1), generator=generator) < 0.5, scattered, behind)
    return chosen & (positions >= canvas.start[:, None]) & (positions < canvas.length[:, None])


def run_predicting(run: torch.nn.Module, both: Copies) -> Tensor:
    """Returns the hidden state that predicts each noisy position, [batch, noisy, hidden]."""
    return _gather_predicting(run(both.ids, mask=both.mask, positions=both.positions), both)


def _gather_predicting(hidden: Tensor, both: Copies) -> Tensor:
    return hidden.gather(1, send(both.rows, hidden.device)[..., None].expand(-1, -1, hidden.shape[-1]))


def make_copies(canvas: AnswerBlocks, contract: Contract, masked: Tensor) -> Copies:
    """Makes a clean and a noisy copy of each row.

    Attention in the clean copy is causal in causal models, else block-causal; in the noisy copy it is block-causal. The
    prompt's last tokens are in the noisy copy too if they are in the answer's first block.

    masked bool [batch, noisy]: which of the positions in `canvas.list_block_positions` are masked. `canvas` may be some
    rows of a batch, and `noisy` the width that the whole batch needs.
    """
    clean, positions = canvas.ids.shape[1], canvas.list_block_positions(contract, masked.shape[1])
    noisy = positions.shape[1]
    source = canvas.ids.gather(1, positions.clamp_max(clean - 1))
    source = source.masked_fill(positions >= canvas.length[:, None], contract.pad_id)
    ids = torch.cat((canvas.ids, source.masked_fill(masked, contract.mask_id)), dim=1)
    before = noise.find_begins(canvas, contract, positions)  # clean tokens that a noisy block sees, [batch, noisy]
    seen = torch.cat((_mask_clean_rows(canvas, contract, noisy), _mask_noisy_rows(before, clean)), dim=1)
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
    rows = clean + torch.arange(noisy).expand_as(positions)
    if contract.shift:  # a block's first token is predicted by the committed row before it; position 0 is given
        rows = torch.where(positions == before, (positions - 1).clamp_min(0), rows - 1)
    everywhere = torch.cat((torch.arange(clean).expand(len(ids), clean), positions), dim=1)
    return Copies(ids, everywhere, mask, masked, rows)


def _mask_clean_rows(canvas: AnswerBlocks, contract: Contract, noisy: int) -> Tensor:
    """Returns which keys the clean copy's queries see: bool [batch, clean, clean + noisy]."""
    rows, clean = canvas.ids.shape
    visible = torch.ones(rows, clean, dtype=torch.int64)
    for row, (start, length) in enumerate(zip(canvas.start.tolist(), canvas.length.tolist(), strict=True)):
        visible[row, :length] = torch.from_numpy(compute_committed_ends(contract, start, length - start))
    return torch.arange(clean + noisy) < visible[:, :, None]


def _mask_noisy_rows(before: Tensor, clean: int) -> Tensor:
    """Returns which keys the noisy copy's queries see: bool [batch, noisy, clean + noisy]."""
    same = before[:, :, None] == before[:, None]  # in the same block; [batch, noisy, noisy]
    committed = torch.arange(clean) < before[:, :, None]  # [batch, noisy, clean]
    return torch.cat((committed, same), dim=2)
