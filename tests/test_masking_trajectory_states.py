"""States sampled from a trajectory made by hand are all the moments it has and no others; trajectories on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from runtime.contract import ALIGNMENTS
from runtime.decoding import loop
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from train import collect
from train.data.batches import choose_width
from train.data.trajectories import MOST_POSITIONS, NEVER_ACCEPTED, Trajectory, read_shards, write_shard
from train.masking import noise, trajectory_states
from train.torch_backend import TorchBackend

M, P = tiny.MASK, tiny.PAD
PROMPT = (5, 6, 7)
TOKENS = [10, 11, 12, 13, 14, 1, P, P, P, P, P, P]  # it ends in the second of three blocks of four
ORDER = [2, 0, 3, 1, 4, 5] + [NEVER_ACCEPTED] * 6

Moment = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def trajectory(width: int = 6) -> Trajectory:
    """Each hidden state names its position."""
    hidden = torch.arange(12.0)[:, None].repeat(1, width).half()
    return Trajectory(PROMPT, torch.tensor(TOKENS), torch.tensor(ORDER), hidden, True)


def sample_states(target: str, seed: int, count: int = 1) -> trajectory_states.States:
    return trajectory_states.sample_states(
        [trajectory()] * count, tiny.contract(), target, torch.Generator().manual_seed(seed)
    )


def moment(found: trajectory_states.States, row: int) -> Moment:
    """A sampled pair: y and y* after the prompt, and the places unmasked between them and masked in both."""
    end = int(found.visible[row].max())
    chosen = [part[row, :end].nonzero().flatten().tolist() for part in (found.unmasked, found.masked)]
    unmasked, masked = (tuple(place - len(PROMPT) for place in places) for places in chosen)
    earlier, later = (tuple(part[row, len(PROMPT) : end].tolist()) for part in (found.earlier, found.later))
    return earlier, later, unmasked, masked


def after(taken: int, reach: int) -> tuple[int, ...]:
    """The answer's first `reach` positions after `taken` of the trajectory's steps."""
    pairs = zip(TOKENS[:reach], ORDER[:reach], strict=True)
    return tuple(token if 0 <= order < taken else M for token, order in pairs)


def test_partial_samples_every_pair_of_moments_of_a_block() -> None:
    expected = set()
    for first, last, end in ((0, 4, 4), (4, 6, 8)):  # the steps of each block, and where the block ends
        for start in range(first, last):
            for stop in range(start + 1, last + 1):
                unmasked = tuple(place for place, order in enumerate(ORDER) if start <= order < stop)
                masked = tuple(place for place, token in enumerate(after(stop, end)) if token == M)
                expected.add((after(start, end), after(stop, end), unmasked, masked))
    assert ((M, 11, M, 13), (10, 11, M, 13), (0,), (2,)) in expected and len(expected) == 13
    # Once the block's last step is taken, what lies behind the end token is filler and not a mask.
    whole = (10, 11, 12, 13, 14, 1, P, P)
    expected = {(y, whole, new, ()) if new and new[-1] == 5 else (y, later, new, m) for y, later, new, m in expected}
    found = sample_states("partial", tiny.choose_seed(), 2000)
    assert {moment(found, row) for row in range(2000)} == expected


def test_completed_finishes_the_block_and_asks_for_consistency_in_the_next() -> None:
    found = sample_states("completed", tiny.choose_seed(), 1000)
    seen = Counter(moment(found, row) for row in range(1000))
    first, second, open_ = (10, 11, 12, 13), (14, 1, P, P), (M, M, M, M)
    assert set(seen) == {
        ((M, M, M, M, *open_), (*first, *open_), (0, 1, 2, 3), (4, 5, 6, 7)),
        ((M, 11, M, M, *open_), (*first, *open_), (0, 2, 3), (4, 5, 6, 7)),
        ((M, 11, M, 13, *open_), (*first, *open_), (0, 2), (4, 5, 6, 7)),
        ((10, 11, M, 13, *open_), (*first, *open_), (2,), (4, 5, 6, 7)),
        ((*first, M, M, M, M, *open_), (*first, *second, *open_), (4, 5), (8, 9, 10, 11)),
        ((*first, 14, M, M, M, *open_), (*first, *second, *open_), (5,), (8, 9, 10, 11)),
    }
    by_length = {len(unmasked): count for (_, _, unmasked, masked), count in seen.items() if masked[0] == 4}
    assert by_length[4] > 1.5 * by_length[1]  # early moments more often: half of the block's samples against an eighth


def test_the_last_block_of_a_canvas_has_none_behind_it() -> None:
    short = trajectory()
    short = replace(short, tokens=short.tokens[:8], order=short.order[:8], hidden=short.hidden[:8])
    found = trajectory_states.sample_states(
        [short] * 50, tiny.contract(), "completed", torch.Generator().manual_seed(0)
    )
    assert {moment(found, row)[3] for row in range(50)} == {(4, 5, 6, 7), ()}


@pytest.mark.parametrize("target", ["completed", "partial"])
def test_hidden_states_are_those_of_the_unmasked_positions_in_their_order(target: str) -> None:
    found = sample_states(target, tiny.choose_seed(), 20)
    places = found.unmasked.nonzero()[:, 1] - len(PROMPT)
    assert found.hidden.shape == (len(places), 6) and found.hidden[:, 0].long().tolist() == places.tolist()


@pytest.mark.parametrize("target", ["completed", "partial"])
def test_tokens_see_the_prompt_finished_blocks_and_their_own(target: str) -> None:
    found = sample_states(target, tiny.choose_seed(), 20)
    assert found.earlier.shape[1] == choose_width(found.earlier.shape[1])
    for row in range(20):
        length = int(found.visible[row].max())
        seen = [3] * 3 + [3 + 4 * (1 + place // 4) for place in range(length - 3)]
        assert found.visible[row, :length].tolist() == seen and (found.visible[row, length:] == 1).all()
        assert (found.earlier[row, :3] == torch.tensor(PROMPT)).all() and (found.earlier[row, length:] == P).all()


@pytest.mark.parametrize("target", ["completed", "partial"])
@pytest.mark.parametrize(
    ("attention", "alignment", "shift"),
    [*(("block_causal", alignment, shift) for alignment in ALIGNMENTS for shift in (False, True)),
     ("causal_context", "prompt", True)],
)  # fmt: skip
def test_a_state_is_what_the_teacher_had_before_it_when_it_accepted_a_token(
    attention: str, alignment: str, shift: bool, target: str
) -> None:
    """The student's forward pass on y gives the hidden state with which the first token after y was accepted."""
    seed = tiny.choose_seed()
    contract = tiny.contract(attention=attention, shift=shift, alignment=alignment, batch=4)
    model, rng = tiny.model(seed), np.random.default_rng(seed)
    backend = TorchBackend(model, contract, keep_hidden=True)
    prompts = [rng.integers(3, tiny.VOCAB, length) for length in range(1, 2 * tiny.BLOCK + 2)]
    found = collect.decode_prompts(backend, [prompt.tolist() for prompt in prompts], 4)
    for t, prompt in zip(found, prompts, strict=True):
        answer = loop.generate(backend, Request(prompt, DecodeOptions(contract.canvas)), gate=collect.ONE_A_STEP)
        assert tuple(t.tokens[: len(answer.token_ids)].tolist()) == answer.token_ids, f"seed {seed}"
        states = trajectory_states.sample_states([t] * 12, contract, target, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            hidden = model(states.earlier, states.visible)[noise.find_predicting_rows(states.unmasked, shift)]
        rows, places = states.unmasked.nonzero(as_tuple=True)
        order = t.order[places - len(prompt)]
        for row in range(12):
            mine = (rows == row).nonzero().flatten()
            one = mine[order[mine].argmin()]
            assert torch.allclose(hidden[one], states.hidden[one], atol=0.02), f"seed {seed}"


def test_a_full_teachers_trajectory_is_read_in_its_students_blocks_to_the_end_of_the_last() -> None:
    contract = tiny.contract(alignment="absolute")  # blocks end at 4, 8, 12, 16; the trajectory at 3 + 12
    found = trajectory_states.sample_states(
        [trajectory()] * 60, contract, "completed", torch.Generator().manual_seed(2)
    )
    ends = found.visible.max(1).values
    assert {*ends.tolist()} == {8, 12, 16}
    for row in (ends == 16).nonzero().flatten().tolist():
        assert found.later[row, 12:16].tolist() == [M] * 4 and found.masked[row, 12:16].all()


def test_in_a_causal_student_a_block_that_y_star_has_committed_is_seen_causally_there_alone() -> None:
    contract = tiny.contract(attention="causal_context", shift=True)
    found = trajectory_states.sample_states(
        [trajectory()] * 40, contract, "completed", torch.Generator().manual_seed(1)
    )
    first, second = (1, 2, 3), (7, 7, 7, 7)
    for y, later in zip(found.visible.tolist(), found.visible_later.tolist(), strict=True):
        if max(y) == 11:  # the first block is sampled, the second after it is masked in both
            assert y[:11] == [*first, *second, 11, 11, 11, 11] and later[:11] == [*range(1, 8), 11, 11, 11, 11]
        else:
            assert y[:15] == [*range(1, 8), *[11] * 4, *[15] * 4] and later[:15] == [*range(1, 12), *[15] * 4]
    assert {max(y) for y in found.visible.tolist()} == {11, 15}


def test_a_state_pair_is_the_same_for_the_same_generator() -> None:
    first, again, other = (sample_states("partial", seed, 8) for seed in (3, 3, 4))
    assert torch.equal(first.earlier, again.earlier) and torch.equal(first.later, again.later)
    assert first.earlier.shape != other.earlier.shape or not torch.equal(first.earlier, other.earlier)


def test_trajectories_come_back_from_their_shards_in_order(tmp_path: Path) -> None:
    second = replace(trajectory(), prompt=(9,), right=False)
    write_shard(tmp_path / "shard-00001.safetensors", [second])
    write_shard(tmp_path / "shard-00000.safetensors", [trajectory(), second])
    read = read_shards(tmp_path)
    assert [t.prompt for t in read] == [PROMPT, (9,), (9,)] and [t.right for t in read] == [True, False, False]
    for t in read:
        assert t.tokens.tolist() == TOKENS and t.order.tolist() == ORDER and t.tokens.dtype == torch.int64
        assert torch.equal(t.hidden, trajectory().hidden) and t.hidden.dtype == torch.float16
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard-00000.safetensors", "shard-00001.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "ragged"])
def test_a_damaged_shard_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-00000.safetensors", [trajectory(), trajectory()])
    path = tmp_path / "shard-00001.safetensors"
    whole = (tmp_path / "shard-00000.safetensors").read_bytes()
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    elif damage == "ragged":
        names = ("prompt", "tokens", "order", "hidden", "right")
        save_file({name: torch.zeros(1 + (name == "order"), 3) for name in names}, path)
    else:
        path.write_bytes(whole[:-7] if damage == "cut" else b"")
    with pytest.raises(UserError, match="is not a shard of trajectories") as error:
        read_shards(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trajectories in .*; write some with blockstep train collect"):
        read_shards(tmp_path)


def test_answers_that_a_shard_cannot_number_and_teachers_without_blocks_are_refused(tmp_path: Path) -> None:
    order = torch.full((12,), NEVER_ACCEPTED)
    order[0] = MOST_POSITIONS - 1  # the last step's number
    write_shard(tmp_path / "shard-00000.safetensors", [replace(trajectory(), order=order)])
    assert read_shards(tmp_path)[0].order[0] == MOST_POSITIONS - 1
    most = MOST_POSITIONS + 1  # whole blocks of 4
    collect.check_teacher(tiny.contract(canvas=most - 4, capacity=2 * most))
    with pytest.raises(UserError, match=r"answers have 32,768 positions; expected at most 32,767; lower --canvas"):
        collect.check_teacher(tiny.contract(canvas=most, capacity=2 * most))
    with pytest.raises(UserError, match="decodes token by token and has no states between"):
        collect.check_teacher(tiny.contract(attention="causal", shift=True, modes=("causal",)))
