"""Where blocks lie, in each alignment, for prompts around the block's length; the block is 4 and the capacity 16."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from runtime.decoding.block_layout import (  # fmt: skip
    check_ids,
    check_reuse,
    check_room,
    check_suffix,
    compute_block_bounds,
    compute_block_ends,
    count_committed,
    count_positions,
    count_room_for_answer,
    round_up_to_blocks,
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
    start = count_committed(contract, prompt)
    assert start == len(visible)
    assert compute_block_ends(contract, start).tolist() == visible


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
    assert round_up_to_blocks(contract, prompt, tokens) == count_committed(contract, prompt) + blocks * contract.block
    assert count_positions(contract, prompt, tokens) == positions
    assert count_room_for_answer(contract, prompt) == room


@pytest.mark.parametrize(("prompt", "room"), [(1, 12), (4, 12), (5, 0)])
def test_a_full_model_has_room_for_its_whole_canvas_or_for_nothing(prompt: int, room: int) -> None:
    contract = tiny.contract(attention="full", canvas=12, capacity=16)
    assert count_room_for_answer(contract, prompt) == room
    assert count_positions(contract, prompt, 3) == prompt + 12


@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_an_answer_that_has_room_fits_the_capacity_and_one_more_token_does_not(alignment: str) -> None:
    contract = tiny.contract(alignment=alignment, capacity=16)
    for prompt in range(1, 20):
        room = count_room_for_answer(contract, prompt)
        if room:
            check_room(contract, prompt, room)
            assert count_positions(contract, prompt, room) <= 16
        assert count_positions(contract, prompt, room + 1) > 16
        with pytest.raises(UserError, match=f"room for {room} new ones in a KV-cache capacity of 16"):
            check_room(contract, prompt, room + 1)


def test_without_a_kv_cache_every_position_sees_everything() -> None:
    assert compute_block_ends(tiny.contract(attention="full", canvas=12), 3, 2).tolist() == [5] * 5


@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_bounds_and_limits_are_int64_as_engines_take_them(alignment: str) -> None:
    contract = tiny.contract(alignment=alignment)
    assert {part.dtype for part in (*compute_block_bounds(contract, 3, 9), compute_block_ends(contract, 3, 9))} == {
        np.dtype("int64")
    }


NO_ROOM = (
    "a prompt of {} tokens leaves room for {} new ones in a KV-cache capacity of 16 ({}), but {} were requested; "
    "shorten the prompt or request fewer"
)
LONG_PROMPT = (
    "the prompt has 6 tokens, but this engine takes one of at most 5; shorten it, or build the engine with a larger "
    "--max-prompt"
)


@pytest.mark.parametrize(
    ("changes", "prompt", "tokens", "said"),
    [
        ({}, 0, 4, "the prompt is empty; give at least one token"),
        ({}, 3, 0, "max_new_tokens is 0; expected at least 1"),
        ({"max_prompt": 5}, 5, 4, None),
        ({"max_prompt": 5}, 6, 4, LONG_PROMPT),
        ({}, 3, 13, NO_ROOM.format(3, 12, "blocks of 4", 13)),
        ({"attention": "full", "canvas": 12}, 5, 1, NO_ROOM.format(5, 0, "a canvas of 12 tokens", 1)),
    ],
)
def test_what_has_no_room_is_refused_in_one_line(
    changes: dict[str, object], prompt: int, tokens: int, said: str | None
) -> None:
    contract = tiny.contract(capacity=16, **changes)
    if said is None:
        check_room(contract, prompt, tokens)
        return
    with pytest.raises(UserError) as refused:
        check_room(contract, prompt, tokens)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("changes", "tokens", "suffix", "said"),
    [
        ({}, 3, 1, None),
        ({}, 4, 0, None),
        ({}, 2, 3, "one block of 4 tokens, beyond which this model sees nothing; request at most 1"),
        ({}, 1, 4, "one block of 4 tokens, beyond which this model sees nothing; shorten the suffix"),
        ({"attention": "full", "canvas": 12}, 9, 4, "a canvas of 12 tokens; request at most 8"),
    ],
)
def test_a_suffix_that_a_token_would_not_see_is_refused_in_one_line(
    changes: dict[str, object], tokens: int, suffix: int, said: str | None
) -> None:
    contract, behind = tiny.contract(**changes), np.arange(suffix)
    if said is None:
        check_suffix(contract, 4, tokens, behind)
        return
    with pytest.raises(UserError) as refused:
        check_suffix(contract, 4, tokens, behind)
    assert str(refused.value) == f"{tokens} new tokens and a suffix of {suffix} do not fit {said}"


def test_models_whose_prompts_cannot_be_kept_say_why() -> None:
    check_reuse(tiny.contract(alignment="absolute"))
    for changes, said in (
        ({"attention": "full"}, "a model without a KV cache computes each prompt anew, so it has no prefix caching"),
        (
            {"alignment": "prompt"},
            "in this model every token of a prompt sees the whole prompt, so that its keys and values fit no other "
            "prompt; generate each answer by itself (prefix caching needs the alignment absolute or end)",
        ),
    ):
        with pytest.raises(UserError) as refused:
            check_reuse(tiny.contract(**changes))
        assert str(refused.value) == said


def test_ids_that_the_model_lacks_are_refused_and_its_own_are_not() -> None:
    contract = tiny.contract()
    check_ids(contract, np.arange(tiny.VOCAB))
    for strange in (-1, tiny.VOCAB):
        with pytest.raises(UserError, match=f"token id {strange} is not in the vocabulary; expected 0 to 23"):
            check_ids(contract, np.array([3, strange]))
