"""TAD: which states it samples, which positions are near, and its loss against one computed position by position."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from block_alone import block_alone

from runtime.contract import ALIGNMENTS, Contract
from runtime.decoding.block_layout import compute_block_bounds, compute_longest_answer
from train.data.batches import Example
from train.data.trajectories import NEVER_ACCEPTED, Trajectory
from train.masking import noise
from train.masking.all_blocks import FILLER
from train.methods import dparallel, tad
from train.methods.setup import MethodInputs, Teacher

M, P, END = tiny.MASK, tiny.PAD, tiny.END
PROMPT = (5, 6, 7)
TOKENS = [10, 11, 12, 13, 14, 1, P, 9, P, P, P, P]  # it ends in the second of three blocks of four
ORDER = [2, 0, 3, 1, 5, 6, NEVER_ACCEPTED, 4, *[NEVER_ACCEPTED] * 4]
KINDS = [
    *(("full", "prompt", shift) for shift in (False, True)),
    *(("block_causal", alignment, shift) for alignment in ALIGNMENTS for shift in (False, True)),
    ("causal_context", "prompt", True),
]


def by_hand() -> Trajectory:
    hidden = torch.arange(12.0)[:, None].repeat(1, 6).half()
    return Trajectory(PROMPT, torch.tensor(TOKENS), torch.tensor(ORDER), hidden, True)


def laid_out(contract: Contract, rows: int, least: int = 0) -> tuple[noise.AnswerBlocks, torch.Tensor]:
    """The trajectory made by hand, in each of `rows` rows."""
    found = [by_hand()] * rows
    laid = noise.lay_out(dparallel.take_answers(found, contract), contract, least, torch.Generator().manual_seed(0))
    return tad.add_steps(laid, found)


@pytest.mark.parametrize(
    ("near", "block", "steps"),
    [(0.25, 32, 8), (0.25, 16, 4), (0.25, 4, 1), (0.1, 30, 3), (0.01, 16, 1), (0, 16, 0), (1, 16, 16)],
)
def test_near_is_a_share_of_the_block_rounded_up(near: float, block: int, steps: int) -> None:
    assert tad.compute_horizon(near, block) == steps


def test_an_answer_has_all_tokens_that_were_unmasked_also_after_its_end() -> None:
    laid, steps = laid_out(tiny.contract(), 2)
    for row in range(2):
        assert laid.ids[row, 3:11].tolist() == [*TOKENS[:6], P, 9] and int(laid.answer_end[row]) == 9
        assert steps[row].tolist() == [*[NEVER_ACCEPTED] * 3, *ORDER[:8], *[NEVER_ACCEPTED] * (laid.ids.shape[1] - 11)]


def states_of(contract: Contract, least: int = 0) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """How often each state of the first block, and of the second, was sampled in 2000 rows; 99: not predicted."""
    laid, steps = laid_out(contract, 2000, least)
    masked, asked, ahead = tad.sample_states(laid, steps, contract, torch.Generator().manual_seed(tiny.choose_seed()))
    assert not (asked & ~masked).any() and not (masked & ~laid.find_inside()).any()
    met: tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]] = (Counter(), Counter())
    for row in range(2000):
        shown = laid.ids[row].masked_fill(masked[row], M).tolist()
        order = [ahead[row, 3 + place].item() if asked[row, 3 + place] else 99 for place in range(8)]
        for block, found in enumerate(met):
            places = range(4 * block, 4 * block + 4)
            found[(*(shown[3 + place] for place in places), *(int(order[place]) for place in places))] += 1
        if contract.attention == "full":  # all blocks after the sampled one are masked
            current = 0 if asked[row, 3:7].any() else 1
            assert not asked[row, 7:].any() if current == 0 else not masked[row, :7].any()
            assert masked[row, 3 + 4 * (current + 1) : int(laid.length[row])].all()
    return met


FIRST = {
    (M, M, M, M, 2, 0, 3, 1),
    (M, 11, M, M, 1, 99, 2, 0),
    (M, 11, M, 13, 0, 99, 1, 99),
    (10, 11, M, 13, 99, 99, 0, 99),
}
SECOND = {(M, M, M, M, 1, 2, -1, 0), (M, M, M, 9, 0, 1, -1, 99), (14, M, M, 9, 99, 0, -1, 99)}


@pytest.mark.parametrize("attention", ["block_causal", "causal_context"])
def test_each_block_of_a_cached_student_is_in_any_of_the_trajectorys_states_early_ones_more_often(
    attention: str,
) -> None:
    first, second = states_of(tiny.contract(attention=attention))
    assert set(first) == FIRST and set(second) == SECOND
    share = first[(M, M, M, M, 2, 0, 3, 1)] / 2000
    assert share == pytest.approx(0.5, abs=0.05)  # u ** 2 below 1/4
    assert second[(M, M, M, M, 1, 2, -1, 0)] / 2000 == pytest.approx(3**-0.5, abs=0.05)


@pytest.mark.parametrize("least", [0, 12])
def test_a_full_student_predicts_one_block_of_the_answer_with_all_after_it_masked(least: int) -> None:
    first, second = states_of(tiny.contract(attention="full"), least)
    clean, later = (10, 11, 12, 13, 99, 99, 99, 99), (M, M, M, M, 99, 99, 99, 99)
    assert set(first) == {*FIRST, clean} and set(second) == {*SECOND, later}
    assert first[clean] / 2000 == pytest.approx(0.5, abs=0.05)


def trajectory(contract: Contract, prompt: int, answer: int, width: int, seed: int) -> Trajectory:
    """A random one: `answer` tokens, the last of them the end token, some after it unmasked too, most of them never."""
    generator, positions = torch.Generator().manual_seed(seed), compute_longest_answer(contract)
    tokens = torch.randint(3, tiny.VOCAB, (positions,), generator=generator)
    order = torch.full((positions,), NEVER_ACCEPTED)
    if answer < contract.canvas:
        tokens[answer - 1] = END
    ends = (compute_block_bounds(contract, prompt, positions)[1][prompt:] - prompt).tolist()
    taken = begin = 0
    while begin < answer:
        places = [place for place in range(begin, min(ends[begin], positions)) if place < answer or place % 3 == 0]
        for place in torch.randperm(len(places), generator=generator).tolist():
            order[places[place]] = taken
            taken += 1
        begin = ends[begin]
    tokens[order == NEVER_ACCEPTED] = P
    hidden = torch.randn((positions, width), generator=generator).half()
    ids = torch.randint(3, tiny.VOCAB, (prompt,), generator=generator)
    return Trajectory(tuple(ids.tolist()), tokens, order, hidden, True)


def make_method_inputs(contract: Contract, seed: int) -> tuple[MethodInputs, Teacher]:
    """A random student and teacher, and random trajectories of one to three blocks."""
    model, teacher = tiny.model(seed), Teacher(tiny.model(seed + 2), tiny.contract(attention="full"), has_adapter=False)
    sizes = ((5, 7), (9, 12), (3, 2), (1, 4), (6, 5))
    found = [trajectory(contract, *size, model.config.width, seed + i) for i, size in enumerate(sizes)]
    stream: Any = SimpleNamespace(batch=6, seed=seed)
    return MethodInputs(model, model, contract, lambda: teacher, found, stream, 3), teacher


def log_probs(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """fp64 log-probabilities of one hidden state [width], the mask token left out. [vocab]"""
    scores = model.logits(hidden[None])[0].double()
    scores[M] = float("-inf")
    return torch.log_softmax(scores, dim=-1)


def slowly(inputs: MethodInputs, teacher: Teacher, step: int, near: float) -> tuple[float, float, Counter[str]]:
    """The loss's two terms, position by position, each block decoded alone; and how many positions of a kind it met."""
    contract, generator, model = inputs.contract, inputs.make_generator(step), inputs.model
    picked = torch.randint(len(inputs.trajectories), (inputs.stream.batch,), generator=generator).tolist()
    found = [inputs.trajectories[i] for i in picked]
    examples = dparallel.take_answers(found, contract)
    laid = noise.lay_out(examples, contract, inputs.compute_least_length(), generator)
    blocks = noise.find_blocks(laid, contract, laid.list_positions())
    chance = torch.rand((len(found), int(blocks.number.max()) + 1), generator=generator)
    current = None if contract.has_cache else noise.sample_block(laid, blocks, generator)
    reach, terms, weights, kinds = tad.compute_horizon(near, contract.block), [0.0, 0.0], [0.0, 0.0], Counter[str]()
    for row, t in enumerate(found):
        start, length = len(t.prompt), int(laid.length[row])
        begins = compute_block_bounds(contract, start, length - start)[0][start:].tolist()
        order = (t.order.tolist() + [NEVER_ACCEPTED] * length)[: length - start]
        tokens = (t.tokens.tolist() + [P] * length)[: length - start]
        ids = [*t.prompt, *(token if at >= 0 else P for token, at in zip(tokens, order, strict=True))]
        for number, begin in enumerate(dict.fromkeys(begins)):
            if current is not None and number != int(current[row]):
                continue
            places = [place for place in range(length - start) if begins[place] == begin]
            unmasked = sorted((place for place in places if order[place] >= 0), key=order.__getitem__)
            gone = unmasked[: int(chance[row, number] ** 2 * len(unmasked))]
            left = unmasked[len(gone) :]
            noisy = [M if i - start in places and i - start not in gone else token for i, token in enumerate(ids)]
            if contract.has_cache:
                cut = torch.tensor(noisy[: begin + contract.block])
                hidden = block_alone(model, contract, cut, start, begin)
            else:
                noisy[begin + contract.block :] = [M] * len(noisy[begin + contract.block :])
                every = torch.tensor([noisy])
                hidden = model(every, torch.full_like(every, length))[0][begin - contract.shift :]
            for place in set(places) - set(gone):
                said = log_probs(model, hidden[start + place - begin])
                weight = 1.0 if place < len(examples[row].answer) else FILLER
                which = int(place in left[reach:])
                if which:
                    taught = log_probs(teacher.model, t.hidden[place].float())
                    value = sum(p.exp() * (p - q) for p, q in zip(taught, said, strict=True) if p > -1e6)
                else:
                    value = -said[ids[start + place]]
                kinds[("near", "distant")[which] + (" after the end" if weight < 1 else "")] += 1
                terms[which] += weight * float(value)
                weights[which] += weight
    return terms[0] / max(weights[0], 1e-6), terms[1] / max(weights[1], 1e-6), kinds


@pytest.mark.parametrize(("attention", "alignment", "shift"), KINDS)
def test_the_loss_is_that_of_every_position_decoded_alone(attention: str, alignment: str, shift: bool) -> None:
    seed, kinds = tiny.choose_seed(), Counter[str]()
    contract = tiny.contract(attention=attention, alignment=alignment, shift=shift)
    inputs, teacher = make_method_inputs(contract, seed)
    loss_of = tad.make_loss(inputs, near=0.5, distant=0.3)
    for step in range(3):
        with torch.no_grad():
            hard, soft, met = slowly(inputs, teacher, step, 0.5)
            total, figures = loss_of(step)
        assert figures["near"] == pytest.approx(hard, rel=1e-4), f"seed {seed}"
        assert figures["distant"] == pytest.approx(soft, rel=1e-4), f"seed {seed}"
        assert total.item() == pytest.approx(hard + 0.3 * soft, rel=1e-4), f"seed {seed}"
        kinds += met
    assert {"near", "distant", "near after the end"} <= kinds.keys(), f"seed {seed}"


def test_without_distant_positions_the_loss_is_cross_entropy_alone_and_without_near_ones_kl_alone() -> None:
    contract = tiny.contract()
    inputs, _ = make_method_inputs(contract, 3)
    whole = [each for each in inputs.trajectories if len(each.prompt) == 9]  # the canvas is full: no filler
    whole = [replace(each, prompt=each.prompt[:8]) for each in whole]
    inputs = replace(inputs, trajectories=whole)
    assert dparallel.take_answers(whole, contract) == [Example(whole[0].prompt, tuple(whole[0].tokens[:12].tolist()))]
    (_, all_near), (_, all_distant) = (tad.make_loss(inputs, near, 1.0)(1) for near in (1.0, 0.0))
    assert all_near["distant"] == 0 and all_near["near"] > 0
    assert all_distant["near"] == 0 and all_distant["distant"] > 0


def test_the_soft_loss_is_of_the_teachers_stored_state_through_its_own_head() -> None:
    """A block of which one token was unmasked has one state; if the stored one is the student's own, the KL is 0."""
    contract, model = tiny.contract(), tiny.model(4)
    made, other = make_method_inputs(contract, 4)
    with torch.no_grad():
        own = block_alone(model, contract, torch.tensor([*PROMPT, M, M, M, M]), 3, 3)[0]
    one = Trajectory(
        PROMPT, torch.tensor([END] + [P] * 11), torch.tensor([0] + [NEVER_ACCEPTED] * 11), own.repeat(12, 1), True
    )

    def soft(teacher: Teacher, found: Trajectory) -> float:
        inputs = replace(made, model=model, run=model, trajectories=[found], teacher=lambda: teacher)
        return tad.make_loss(inputs, near=0.0, distant=1.0)(1)[1]["distant"]

    itself = Teacher(model, contract, has_adapter=True)
    assert soft(itself, one) == pytest.approx(0, abs=1e-4)
    assert soft(itself, replace(one, hidden=-one.hidden)) > 0.1 and soft(other, one) > 0.1
