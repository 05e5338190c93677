"""The compiled forward pass of training is the eager one, and few graphs serve batches of all widths."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from train.transformer.compiled import CompiledForward
from train.transformer.network import Transformer, initialize, make_prefix_mask


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Transformer, CompiledForward]]:
    """A model and its compiled forward pass; graphs are taken but not made into C++, which takes a minute."""
    compile_any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_any(function, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    model = initialize(Transformer(tiny.shape(0)), 0)
    yield model, CompiledForward(model)
    torch._dynamo.reset()


def batch(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, prefix lengths and positions; the lengths expanded by turns from rows and from columns, as losses do."""
    ids = torch.randint(0, tiny.VOCAB, (rows, width), generator=torch.Generator().manual_seed(width))
    visible = (torch.arange(width) + 1) if width % 64 else torch.full((rows, 1), width)
    return ids, visible.expand(rows, width), torch.arange(width).expand(rows, width).flip(1)


def test_all_widths_share_a_graph_for_each_kind_of_mask(pair: tuple[Transformer, CompiledForward]) -> None:
    model, compiled = pair
    for width in (32, 64, 96, 128, 32):
        ids, visible, positions = batch(3, width)
        assert torch.equal(compiled(ids, visible), model(ids, visible))
        mask = make_prefix_mask(visible, width)
        assert torch.equal(compiled(ids, mask=mask, positions=positions), model(ids, mask=mask, positions=positions))
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_gradients_are_those_of_the_eager_pass_and_none_take_a_graph_of_their_own(
    pair: tuple[Transformer, CompiledForward],
) -> None:
    model, compiled = pair
    found = []
    for run in (model, compiled):
        for width in (32, 64):
            model.logits(run(*batch(3, width)[:2])).square().mean().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad()
    assert len(found[0]) == len(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with torch.no_grad():
        compiled(*batch(3, 96)[:2])
    assert counters["stats"]["unique_graphs"] == 2


def test_neither_lengths_nor_a_mask_is_refused(pair: tuple[Transformer, CompiledForward]) -> None:
    with pytest.raises(ValueError, match="neither visible nor mask"):
        pair[1](torch.ones(1, 4, dtype=torch.int64))


def test_dropout_is_that_of_the_eager_pass(pair: tuple[Transformer, CompiledForward]) -> None:
    model, compiled = pair
    model.train().dropout = 0.5
    found = []
    for run in (model, compiled):
        torch.manual_seed(3)
        found.append(run(*batch(3, 32)[:2]))
    assert torch.equal(*found) and not torch.equal(found[0], model(*batch(3, 32)[:2]))
