"""Where blocks lie, in each alignment, for prompts around the block's length; the block is 4 and the capacity 16."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from runtime.decoding.block_layout import (  # fmt: skip
    block_ends,
    check_ids,
    check_room,
    committed_prompt,
    positions_for,
    room_for_answer,
    whole_blocks,
)
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("alignment", "prompt", "visible"),
    [
        ("prompt", 1, [1]),
        ("prompt", 3, [3] * 3),
        ("prompt", 5, [5] * 5),
        ("absolute", 1, []),
        ("absolute", 3, []),
        ("absolute", 4, [4] * 4),
        ("absolute", 5, [4] * 4),
        ("absolute", 10, [4] * 4 + [8] * 4),
        ("end", 1, [1]),
        ("end", 3, [3] * 3),
        ("end", 4, [4] * 4),
        ("end", 5, [1] + [5] * 4),
        ("end", 10, [2] * 2 + [6] * 4 + [10] * 4),
    ],
)
def test_what_the_prefilled_prompt_sees(alignment: str, prompt: int, visible: list[int]) -> None:
    contract = tiny.contract(alignment=alignment)
    start = committed_prompt(contract, prompt)
    assert start == len(visible)
    assert block_ends(contract, start).tolist() == visible


@pytest.mark.parametrize(
    ("alignment", "prompt", "tokens", "blocks", "positions", "room"),
    [
        ("prompt", 1, 1, 1, 5, 12),
        ("prompt", 3, 4, 1, 7, 12),
        ("prompt", 3, 5, 2, 11, 12),
        ("prompt", 5, 4, 1, 9, 8),
        ("prompt", 13, 1, 1, 17, 0),
        ("end", 5, 8, 2, 13, 8),
        ("absolute", 1, 3, 1, 4, 15),
        ("absolute", 1, 4, 2, 8, 15),
        ("absolute", 3, 1, 1, 4, 13),
        ("absolute", 4, 4, 1, 8, 12),
        ("absolute", 5, 11, 3, 16, 11),
        ("absolute", 15, 1, 1, 16, 1),
        ("absolute", 16, 1, 1, 20, 0),
    ],
)
def test_room_blocks_and_positions(
    alignment: str, prompt: int, tokens: int, blocks: int, positions: int, room: int
) -> None:
    contract = tiny.contract(alignment=alignment, capacity=16)
    assert whole_blocks(contract, prompt, tokens) == committed_prompt(contract, prompt) + blocks * contract.block
    assert positions_for(contract, prompt, tokens) == positions
    assert room_for_answer(contract, prompt) == room


@pytest.mark.parametrize(("prompt", "room"), [(1, 12), (4, 12), (5, 0)])
def test_a_full_model_has_room_for_its_whole_canvas_or_for_nothing(prompt: int, room: int) -> None:
    contract = tiny.contract(attention="full", canvas=12, capacity=16)
    assert room_for_answer(contract, prompt) == room
    assert positions_for(contract, prompt, 3) == prompt + 12


@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_an_answer_that_has_room_fits_the_capacity_and_one_more_token_does_not(alignment: str) -> None:
    contract = tiny.contract(alignment=alignment, capacity=16)
    for prompt in range(1, 20):
        room = room_for_answer(contract, prompt)
        if room:
            check_room(contract, prompt, room)
            assert positions_for(contract, prompt, room) <= 16
        assert positions_for(contract, prompt, room + 1) > 16
        with pytest.raises(UserError, match=f"room for {room} new ones in a capacity of 16"):
            check_room(contract, prompt, room + 1)


@pytest.mark.parametrize(("prompt", "tokens", "said"), [(0, 4, "the prompt is empty"), (3, 0, "max_new_tokens is 0")])
def test_nothing_to_answer_is_refused(prompt: int, tokens: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_room(tiny.contract(), prompt, tokens)


def test_ids_that_the_model_lacks_are_refused_and_its_own_are_not() -> None:
    contract = tiny.contract()
    check_ids(contract, np.arange(tiny.VOCAB))
    for strange in (-1, tiny.VOCAB):
        with pytest.raises(UserError, match=f"token id {strange} is not in the vocabulary; expected 0 to 23"):
            check_ids(contract, np.array([3, strange]))
