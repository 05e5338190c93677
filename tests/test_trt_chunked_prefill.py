"""Forward passes cut into chunks, and the profile and width that each is run with."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from runtime.backend import Forward
from runtime.decoding.block_layout import check_room, compute_block_ends
from runtime.engines.trt.chunked_prefill import choose_cuts, split_forward
from runtime.engines.trt.profile import OptimizationProfile, choose_profile
from runtime.errors import UserError
from runtime.perf.latency import choose_prefill_lengths
from train.torch_backend import TorchBackend

BLOCK = tiny.BLOCK


def prefill(alignment: str, length: int, past: int = 0) -> Forward:
    """A prompt whose first, sixth and last token are asked for."""
    contract = tiny.contract(alignment=alignment)
    ids = np.random.default_rng(length).integers(3, tiny.VOCAB, (1, length))
    rows = np.array([[0, 5, length - 1]])
    return Forward(ids, np.array([past]), past + compute_block_ends(contract, length)[None], rows)


@pytest.mark.parametrize(
    ("alignment", "length", "max_width", "expected"),
    [
        ("absolute", 20, 20, [20]),
        ("absolute", 20, 19, [16, 20]),
        ("absolute", 20, 8, [8, 16, 20]),
        ("absolute", 20, 4, [4, 8, 12, 16, 20]),
        ("end", 18, 9, [6, 14, 18]),
        ("end", 18, 4, [2, 6, 10, 14, 18]),
        ("prompt", 18, 18, [18]),
    ],
)
def test_chunks_end_where_blocks_end(alignment: str, length: int, max_width: int, expected: list[int]) -> None:
    assert choose_cuts(prefill(alignment, length), max_width) == expected
    assert choose_cuts(prefill(alignment, length, past=12), max_width) == expected


@pytest.mark.parametrize(("alignment", "max_width"), [("prompt", 17), ("absolute", 3), ("end", 3)])
def test_tokens_that_see_each_other_are_not_cut(alignment: str, max_width: int) -> None:
    with pytest.raises(UserError, match=rf"18 tokens see each other, but this engine takes {max_width} at once"):
        choose_cuts(prefill(alignment, 18), max_width)


def test_a_canvas_behind_a_prompt_is_a_chunk_of_its_own() -> None:
    one = prefill("prompt", 10)
    ids = np.concatenate((one.input_ids, np.full((1, BLOCK), tiny.MASK)), axis=1)
    visible = np.concatenate((one.visible, np.full((1, BLOCK), 10 + BLOCK)), axis=1)
    both = Forward(ids, one.past_length, visible, np.array([[9, 10, 11, 12]]))
    first, second = split_forward(both, 10)
    assert first.forward.rows.tolist() == [[9, 0, 0, 0]] and first.has_row.tolist() == [[True, False, False, False]]
    assert second.forward.rows.tolist() == [[0, 0, 1, 2]] and second.has_row.tolist() == [[False, True, True, True]]
    assert second.forward.past_length.tolist() == [10] and second.forward.visible.tolist() == [[14] * BLOCK]


@pytest.mark.parametrize("alignment", ["absolute", "end"])
def test_chunks_one_after_the_other_are_the_whole(alignment: str) -> None:
    contract, forward = tiny.contract(alignment=alignment), prefill(alignment, 20 if alignment == "absolute" else 22)
    whole, cut = (TorchBackend(tiny.model(1), contract) for _ in range(2))
    whole.open(1, 64)
    expected = whole.forward(forward)
    for max_width in (4, 6, 12, 22):
        cut.open(1, 64)
        token, confidence = np.zeros((1, 3), np.int64), np.zeros((1, 3), np.float32)
        for chunk in split_forward(forward, max_width):
            assert chunk.forward.input_ids.shape[1] <= max_width
            out = cut.forward(chunk.forward)
            np.copyto(token, out.token, where=chunk.has_row)
            np.copyto(confidence, out.confidence, where=chunk.has_row)
        assert token.tolist() == expected.token.tolist()
        assert np.abs(confidence - expected.confidence).max() < 1e-6


HOT, TWO, ANY = (OptimizationProfile(*each) for each in ((0, 32, 32, 32), (1, 64, 64, 32), (2, 1, 512, 32)))


@pytest.mark.parametrize(
    ("width", "room", "expected"),
    [
        (32, 999, (HOT, 32)),
        (64, 999, (TWO, 64)),
        (10, 999, (HOT, 32)),
        (33, 999, (TWO, 64)),
        (65, 999, (ANY, 128)),
        (500, 999, (ANY, 512)),
        (10, 31, (ANY, 31)),
        (40, 63, (ANY, 63)),
        (512, 512, (ANY, 512)),
    ],
)
def test_a_width_is_padded_to_the_narrowest_profile_that_the_room_allows(
    width: int, room: int, expected: tuple[OptimizationProfile, int]
) -> None:
    assert choose_profile((HOT, TWO, ANY), width, room, allow_padding=True) == expected


def test_without_padding_widths_are_exact() -> None:
    assert choose_profile((HOT, ANY), 33, 40, allow_padding=False) == (ANY, 33)
    assert choose_profile((HOT, ANY), 32, 40, allow_padding=False) == (HOT, 32)
    with pytest.raises(UserError, match="no profile of this engine takes 513 tokens with room for 600"):
        choose_profile((HOT, ANY), 513, 600, allow_padding=False)


def test_the_longest_prompt_of_an_engine_is_in_its_contract() -> None:
    contract = tiny.contract(max_prompt=10)
    check_room(contract, 10, 4)
    with pytest.raises(UserError, match="has 11 tokens, but this engine takes one of at most 10"):
        check_room(contract, 11, 4)
    assert max(choose_prefill_lengths(contract)) == 10 and max(choose_prefill_lengths(tiny.contract())) == 60
    assert "max_prompt" not in tiny.contract().as_dict() and contract.as_dict()["max_prompt"] == 10
    with pytest.raises(UserError, match=r"contract\.max_prompt is 0"):
        tiny.contract(max_prompt=0)
